# shellcheck shell=bash
# What the job scripts share: how ranks find each other, how they are started, and what happens to the job at their end.

MAX_CRASHES=3 # give up after this many starts from one checkpoint that failed before the next one
MAX_STOPS=20  # and after this many that SLURM stopped before the next one

source slurm/environment.sh
JOB=$SLURM_JOB_ID # in an array, the element that started last has the id of the whole array; see the next line
[[ -z ${SLURM_ARRAY_TASK_ID:-} ]] || JOB=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
restarts=$((${SLURM_RESTART_COUNT:-0} + ${GAN_DIST_RESTARTS:-0})) # how often this job has started before
trap stopping TERM # SLURM sends TERM to this shell too; only the ranks act on it, and `end` decides afterwards

say() { echo "slurm: $*"; }

# option NAME DEFAULT ARGUMENTS…: the path that the arguments give to NAME, or DEFAULT if they give none or an empty one.
# As in Python, the last one counts, all characters are part of it, and only ~ and ~user at its beginning are expanded.
option() {
  local value='' home argument user='^(~([A-Za-z_][A-Za-z0-9._-]*)?)(/.*)?$'
  for argument in "${@:3}"; do [[ $argument == "$1="* ]] && value=${argument#*=}; done
  if [[ $value =~ $user ]]; then
    eval "home=${BASH_REMATCH[1]}" # it gets no other characters than those of a user's name
    value=$home${BASH_REMATCH[3]}
  fi
  printf '%s\n' "${value:-$2}"
}

# start_ranks COMMAND ARGUMENTS…: run `gan-dist COMMAND ARGUMENTS…`, one process for each GPU, or for each task if
# there is no GPU. Returns the highest exit status.
start_ranks() {
  local tasks=${SLURM_NTASKS:-$SLURM_NNODES} per_node cpus
  per_node=${SLURM_GPUS_ON_NODE:-$((tasks / SLURM_NNODES))}
  if ((tasks % SLURM_NNODES)); then
    say "$tasks tasks do not spread evenly over $SLURM_NNODES nodes: use --ntasks-per-node"
    return 2
  fi
  cpus=$((SLURM_CPUS_ON_NODE / per_node))
  if ((cpus < ${SLURM_CPUS_PER_TASK:-1})); then
    say "$per_node processes on a node share $SLURM_CPUS_ON_NODE CPUs; --ntasks-per-node=$per_node gives each as many"
  else
    cpus=${SLURM_CPUS_PER_TASK:-1}
  fi
  local options=()
  if ((cpus == 0)); then cpus=1 options=(--overcommit); fi
  meet || return
  export WORLD_SIZE=$((SLURM_NNODES * per_node)) LOCAL_WORLD_SIZE=$per_node OMP_NUM_THREADS=$cpus PYTHONUNBUFFERED=1
  say "$WORLD_SIZE processes on $SLURM_JOB_NODELIST, $cpus threads each; they meet at $MASTER_ADDR:$MASTER_PORT"
  # If a process fails, gan_dist itself ends the others, so each keeps its true exit status. --wait ends those that hang.
  # shellcheck disable=SC2016 # each rank expands its own variables
  attend srun --ntasks="$WORLD_SIZE" --ntasks-per-node="$per_node" --cpus-per-task="$cpus" --kill-on-bad-exit=0 --wait=20 \
    "${options[@]}" \
    bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec "$@"' rank "${PYTHON[@]}" -m gan_dist "$@"
}

# attend COMMAND ARGUMENTS…: run a command and return its exit status. The shell can act on TERM while it waits.
attend() {
  local status process
  "$@" &
  process=$!
  while
    signalled=
    wait "$process"
    status=$?
    [[ $signalled ]] # TERM has interrupted `wait`
  do :; done
  return "$status"
}

# meet: set MASTER_ADDR to the first node, on which this script runs, and MASTER_PORT to a port that no program listens
# on. The port is below the range that the kernel gives to other programs. It follows from the number of the job, so
# that two jobs on one node take different ports.
meet() {
  local node try
  node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  getent hosts "$node" >/dev/null || node=$(scontrol show node "$node" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
  for ((try = 0; try < 100; try++)); do
    MASTER_PORT=$((20000 + (SLURM_JOB_ID + 1009 * (restarts + try)) % 10000))
    (: >"/dev/tcp/127.0.0.1/$MASTER_PORT") 2>/dev/null && continue
    export MASTER_ADDR=$node MASTER_PORT
    return
  done
  say "no free port between 20000 and 29999"
  return 2
}

# begin RUN_DIR: count this start; give up if too many starts from the same checkpoint did not reach the next one.
# `.starts` has a line for each start, and one more for each start that SLURM has stopped. If the file cannot be
# written, each earlier start of this job counts as one that failed.
begin() {
  run_dir=$1 counting=1 starts=$((restarts + 1)) stops=0
  mkdir -p "$run_dir"
  export GAN_DIST_STATUS_FILE=$run_dir/.status # where the main process leaves its exit status
  rm -f "$run_dir/.status" 2>/dev/null || GAN_DIST_STATUS_FILE=
  checkpoint=$(newest)
  if note "$checkpoint, job $SLURM_JOB_ID"; then
    starts=$(grep -c "^$checkpoint, job" "$run_dir/.starts")
    stops=$(grep -c "^$checkpoint, stopped" "$run_dir/.starts")
  else
    say "$run_dir/.starts cannot be written, so the restarts of this job are counted: $restarts"
  fi
  ((starts - stops <= MAX_CRASHES)) || give_up "$MAX_CRASHES starts" "last failed: a node or the job's own shell"
  ((stops < MAX_STOPS)) || give_up "$MAX_STOPS starts" "each was stopped before that"
}

# newest: the name of the newest checkpoint
newest() {
  local name
  name=$(find "$run_dir/checkpoints" -maxdepth 1 -regex '.*/[0-9]+' -printf '%f\n' 2>/dev/null | sort -n | tail -n 1)
  echo "${name:-the beginning}"
}

# note LINE: add a line to `.starts`. The file is written anew and renamed, so a link or a FIFO of that name is replaced.
note() {
  local file=$run_dir/.starts before=
  [[ ! -f $file || -L $file ]] || before=$(cat "$file")
  { rm -f "$file.new" && printf '%s\n' ${before:+"$before"} "$1" >"$file.new" && mv -fT "$file.new" "$file"; } 2>/dev/null
}

# stopping: TERM has arrived. If the ranks take too long, SLURM kills this shell too, so the stop is noted now.
stopping() {
  signalled=1
  look
  limit_passed || stopped
}

# stopped: this start did not fail, but was stopped; note it once
stopped() {
  [[ ${counting:-} ]] || return 0
  counting=
  stops=$((stops + 1))
  note "$checkpoint, stopped"
}

# look: set the state of this job, the time that it has left, and the time that it has used
look() { read -r state left used < <(squeue --noheader --jobs="$JOB" --format="%T %L %M"); }

limit_passed() { [[ $left =~ ^(INVALID|0:00)$ ]]; }

# limit_near: the job's own time limit is the reason for the signal. A job that is preempted has a PreemptTime. Without
# it the signal is that of `--signal` if little time is left: the scripts ask for it 300 s before the limit, and SLURM
# sends it up to a minute earlier. If it was asked for earlier than that, at least half of the time has been used.
limit_near() {
  limit_passed && return
  [[ $state == RUNNING && $left =~ ^[0-9:-]+$ ]] || return
  ! scontrol show job "$JOB" | grep -q 'PreemptTime=[0-9]' || return
  (($(seconds "$left") <= 390 || $(seconds "$left") <= $(seconds "$used")))
}

# seconds TIME: those of a time as SLURM prints it, [days-][hours:]minutes:seconds
seconds() {
  local days=0 clock=$1 total=0 part
  [[ $1 != *-* ]] || days=${1%-*} clock=${1#*-}
  for part in ${clock//:/ }; do total=$((60 * total + 10#$part)); done
  echo $((86400 * days + total))
}

# give_up WHICH WHY: end this job, because WHICH starts did not reach the next checkpoint
give_up() {
  say "gave up: $1 from $checkpoint did not reach the next checkpoint; $2"
  rm -f "$run_dir/.starts"
  exit 1
}

# end STATUS SCRIPT ARGUMENTS…: finish, fail or requeue this job. If it must continue but cannot be requeued, a new job
# runs SCRIPT ARGUMENTS….
end() {
  local status=$1 own
  shift
  # The status that the run itself has written comes first, because `accelerate launch` turns every failure into 1.
  [[ -f $GAN_DIST_STATUS_FILE ]] && read -r own <"$GAN_DIST_STATUS_FILE" && [[ $own != 1 ]] && status=$own
  [[ $status != 2 ]] || exit 2
  look
  if [[ $status == 0 || $(newest) != "$checkpoint" ]]; then
    rm -f "$run_dir/.starts"
    starts=0 stops=0
  elif [[ $status == 75 || $state != RUNNING ]] && ! limit_near; then
    stopped
  fi
  counting= # the next TERM comes from the requeueing itself
  if [[ $status != 0 ]] && { [[ $state == RUNNING ]] || { [[ $state == COMPLETING ]] && limit_passed; }; }; then
    go_on "$status" "$@"
  fi
  exit "$status" # finished, wrong settings, cancelled, or requeued by SLURM itself
}

# go_on STATUS SCRIPT ARGUMENTS…: requeue this job, unless too many starts did not reach the next checkpoint
go_on() {
  local why="last failed: exit status $1"
  [[ $1 != 75 ]] || why="the time limit stopped the last one too early: use a longer --time"
  ((starts - stops < MAX_CRASHES)) || give_up "$MAX_CRASHES starts" "$why"
  ((stops < MAX_STOPS)) || give_up "$MAX_STOPS starts" "each was stopped before that"
  if limit_passed; then
    say "the time limit has passed"
  elif [[ $1 != 75 ]]; then
    say "failed with exit status $1"
  fi
  again "${@:2}"
}

# again SCRIPT ARGUMENTS…: requeue this job. If requeueing is switched off, submit a new job with the same options, as
# far as a job can see its own options. sbatch takes the others from SBATCH_SIGNAL, SBATCH_CONSTRAINT and so on.
again() {
  say "this job goes on later"
  scontrol requeue "$JOB" && exit 0
  local pair value options=()
  for pair in account:ACCOUNT partition:PARTITION qos:QOS nodes:NUM_NODES reservation:RESERVATION; do
    value=SLURM_JOB_${pair#*:}
    [[ ${!value:-} ]] && options+=("--${pair%:*}=${!value}")
  done
  for pair in ntasks:NTASKS ntasks-per-node:NTASKS_PER_NODE cpus-per-task:CPUS_PER_TASK gpus-per-node:GPUS_PER_NODE \
    mem:MEM_PER_NODE mem-per-cpu:MEM_PER_CPU array:ARRAY_TASK_ID; do
    value=SLURM_${pair#*:}
    [[ ${!value:-} ]] && options+=("--${pair%:*}=${!value}")
  done
  options+=(--dependency="afterany:$JOB" --job-name="$SLURM_JOB_NAME" --open-mode=append
    --time="$(squeue --noheader --jobs="$JOB" --format=%l)"
    --output="$(scontrol show job "$JOB" | sed -n 's/^ *StdOut=//p')")
  local conf=${SLURM_CONF:-}
  export GAN_DIST_RESTARTS=$((restarts + 1))
  unset "${!SLURM_@}" # otherwise the new job would take them for its own
  [[ -z $conf ]] || export SLURM_CONF=$conf
  sbatch "${options[@]}" "$@" && exit 0
  say "could not start another job"
  exit 1
}
