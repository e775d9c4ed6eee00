# shellcheck shell=bash
# What the job scripts share: where ranks meet, how they are started, and what becomes of the job when they have ended.

MAX_CRASHES=3 # give up after so many starts from one checkpoint that did not reach the next

source slurm/environment.sh
JOB=$SLURM_JOB_ID # of an array, this is the whole array's too in the element that started last
[[ -z ${SLURM_ARRAY_TASK_ID:-} ]] || JOB=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
trap : TERM # SLURM sends it to this shell too; the ranks act on it, and what follows them is decided here

say() { echo "slurm: $*"; }

# option NAME DEFAULT ARGUMENTS…: the last value that the arguments give to NAME
option() {
  local value=$2 argument
  for argument in "${@:3}"; do [[ $argument == "$1="* ]] && value=${argument#*=}; done
  echo "$value"
}

# start_ranks COMMAND ARGUMENTS…: `gan-dist COMMAND ARGUMENTS…`, a process for each GPU, or each task where there are none.
# Returns the highest exit status of all.
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
  # Processes that fail end each other by themselves, with their true statuses; --wait is for those that hang.
  # shellcheck disable=SC2016 # a rank expands its own variables
  srun --ntasks="$WORLD_SIZE" --ntasks-per-node="$per_node" --cpus-per-task="$cpus" --kill-on-bad-exit=0 --wait=20 \
    "${options[@]}" \
    bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec "$@"' rank "${PYTHON[@]}" -m gan_dist "$@"
}

# MASTER_ADDR and MASTER_PORT. This script runs on the first node. The port lies below those that the kernel gives to
# others, nobody listens there, and a lock, held as long as this shell lives, keeps it from the other jobs of this node.
meet() {
  local node
  node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  getent hosts "$node" >/dev/null || node=$(scontrol show node "$node" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
  for MASTER_PORT in $(shuf -i 20000-29999 -n 100); do
    # shellcheck disable=SC1083,SC2188 # an automatic descriptor; another user's lock can't be opened
    { exec {lock}>"/tmp/gan_dist-port-$MASTER_PORT"; } 2>/dev/null && flock -n "$lock" &&
      ! (: >"/dev/tcp/127.0.0.1/$MASTER_PORT") 2>/dev/null && export MASTER_ADDR=$node MASTER_PORT && return
  done
  say "no free port between 20000 and 29999"
  return 2
}

# begin RUN_DIR: count a start; give up if too many did not get beyond the checkpoint that this one goes on from.
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

# end STATUS RUN_DIR SCRIPT ARGUMENTS…: what becomes of the job. SCRIPT ARGUMENTS… is what goes on where it may not itself.
end() {
  local status=$1 run_dir=$2 state left own
  shift 2
  # What the run itself says about its end counts for more: `accelerate launch` makes 1 of every other status.
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
  exit "$status" # finished, settings that can't be, cancelled, or requeued by SLURM itself
}

# again SCRIPT ARGUMENTS…: this job once more; where that is switched off, another one like it, as far as a job can see its
# own options. sbatch takes others from SBATCH_SIGNAL, SBATCH_CONSTRAINT and so on.
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
  unset "${!SLURM_@}" # else the other job takes them for its own
  [[ -z $conf ]] || export SLURM_CONF=$conf
  sbatch "${options[@]}" "$@" && exit 0
  say "could not start another job"
  exit 1
}
