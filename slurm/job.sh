# shellcheck shell=bash
# What the job scripts share: how ranks find each other, how they are started, and what happens to the job at their end.

MAX_CRASHES=3 # give up after this many starts from one checkpoint that did not reach the next one

source slurm/environment.sh
JOB=$SLURM_JOB_ID # in an array, the element that started last has the id of the whole array; see the next line
[[ -z ${SLURM_ARRAY_TASK_ID:-} ]] || JOB=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
trap : TERM # SLURM sends TERM to this shell too; only the ranks act on it, and `end` decides afterwards

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
  srun --ntasks="$WORLD_SIZE" --ntasks-per-node="$per_node" --cpus-per-task="$cpus" --kill-on-bad-exit=0 --wait=20 \
    "${options[@]}" \
    bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec "$@"' rank "${PYTHON[@]}" -m gan_dist "$@"
}

# meet: set MASTER_ADDR to the first node, on which this script runs, and MASTER_PORT to a free port. The port is below
# the range that the kernel gives to other programs, and no program listens on it. This shell holds a lock on the port
# until it ends, so that no other job of this node takes the same port.
meet() {
  local node
  node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  getent hosts "$node" >/dev/null || node=$(scontrol show node "$node" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
  for MASTER_PORT in $(shuf -i 20000-29999 -n 100); do
    # shellcheck disable=SC1083,SC2188 # bash chooses the descriptor; the lock of another user cannot be opened
    { exec {lock}>"/tmp/gan_dist-port-$MASTER_PORT"; } 2>/dev/null && flock -n "$lock" &&
      ! (: >"/dev/tcp/127.0.0.1/$MASTER_PORT") 2>/dev/null && export MASTER_ADDR=$node MASTER_PORT && return
  done
  say "no free port between 20000 and 29999"
  return 2
}

# begin RUN_DIR: count this start; give up if too many starts from the same checkpoint did not reach the next one.
begin() {
  mkdir -p "$1"
  rm -f "$1/.status"
  export GAN_DIST_STATUS_FILE=$1/.status # where the main process leaves its exit status
  checkpoint=$(find "$1/checkpoints" -maxdepth 1 -name '[0-9]*' -printf '%f\n' 2>/dev/null | sort | tail -n 1)
  echo "${checkpoint:-the beginning}, job $SLURM_JOB_ID" >>"$1/.starts"
  starts=$(grep -c "^${checkpoint:-the beginning}," "$1/.starts")
  ((starts <= MAX_CRASHES)) || give_up "$1" "a node or the job's own shell"
}

give_up() {
  say "gave up: $MAX_CRASHES starts from ${checkpoint:-the beginning} did not reach the next checkpoint; last failed: $2"
  rm "$1/.starts"
  exit 1
}

# end STATUS RUN_DIR SCRIPT ARGUMENTS…: finish, fail or requeue this job. If it must continue but cannot be requeued, a
# new job runs SCRIPT ARGUMENTS….
end() {
  local status=$1 run_dir=$2 state left own
  shift 2
  # The status that the run itself has written comes first, because `accelerate launch` turns every failure into 1.
  read -r own 2>/dev/null <"$run_dir/.status" && [[ $own != 1 ]] && status=$own
  read -r state left < <(squeue --noheader --jobs="$JOB" --format="%T %L")
  if [[ $state == RUNNING && $status != [02] && $status != 75 ]]; then
    ((starts < MAX_CRASHES)) || give_up "$run_dir" "exit status $status"
    say "failed with exit status $status"
    again "$@"
  fi
  [[ $status == 2 ]] || rm "$run_dir/.starts"
  if [[ $state == RUNNING && $status == 75 ]]; then
    again "$@"
  elif [[ $state == COMPLETING && $left =~ ^(INVALID|0:00)$ && $status != [02] ]]; then
    say "the time limit has passed"
    again "$@"
  fi
  exit "$status" # finished, wrong settings, cancelled, or requeued by SLURM itself
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
    --output="$(scontrol show job "$JOB" | grep -o 'StdOut=.*' | cut -d= -f2)")
  local conf=${SLURM_CONF:-}
  unset "${!SLURM_@}" # otherwise the new job would take them for its own
  [[ -z $conf ]] || export SLURM_CONF=$conf
  sbatch "${options[@]}" "$@" && exit 0
  say "could not start another job"
  exit 1
}
