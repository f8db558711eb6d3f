#!/usr/bin/env bash
# Submits `clip_jax train` to Slurm; a preempted job goes back into the queue and goes on.
#   bash launch/slurm.sh [--dry_run] [OPTIONS OF sbatch] -- --config=NAME --workdir=DIR ...
#   bash launch/slurm.sh --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --time=24:00:00 -- ...
# One task per GPU, or one per host of TPUs; tasks find each other by Slurm's variables. 180 s before
# its end a job gets SIGTERM, saves and ends with 42. It is queued again on 42 and when it was killed
# (128 + n), but at most 5 times in a row without a new checkpoint. --dry_run only prints the job.
# Environment: PYTHON (on the nodes; .venv/bin/python of this checkout, else python3).
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

fail() { echo "error: launch/slurm.sh: $1" >&2; exit 2; }

dry_run="" options=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '2,8s/^# //p' "${BASH_SOURCE[0]}"; exit 0 ;;
    --dry_run) dry_run=yes ;;
    --) shift; break ;;
    -*) options+=("$1") ;;
    *) fail "write options of sbatch as --name=value (got '$1')" ;;
  esac
  shift
done
workdir=""
for flag in "$@"; do
  case $flag in --workdir=*) workdir=${flag#*=} ;; esac
done
if [ -z "$workdir" ]; then fail "give the flags of clip_jax train after --, with --workdir=DIR"; fi
if [ -z "$dry_run" ] && ! command -v sbatch >/dev/null; then
  fail "sbatch is not here; submit from a node of the cluster, or look at the job with --dry_run"
fi

python=${PYTHON:-$root/.venv/bin/python}
if [ -z "${PYTHON:-}" ] && ! [ -x "$python" ]; then python=python3; fi
quoted=$(printf ' %q' "$@")
job=$(
  cat <<JOB
#!/usr/bin/env bash
#SBATCH --job-name=clip_jax
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@180
set -uo pipefail
python=$(printf %q "$python") again=$(printf %q "$root/launch/again.py")
flags=($quoted )
cd $(printf %q "$PWD") || exit 2
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY # processes talk to each other directly

saved() { "\$python" "\$again" --saved -- "\${flags[@]}"; }

before=\$(saved) || exit 2
# The processes end each other; --wait is for one that cannot.
srun --wait=60 "\$python" -u -m clip_jax train "\${flags[@]}"
status=\$?
if [ "\$status" -ne 42 ] && { [ "\$status" -lt 128 ] || [ "\$status" -eq 130 ]; }; then
  exit "\$status"
fi

# How often in a row it brought no checkpoint stands beside the log.
count_file=clip_jax-\$SLURM_JOB_ID.restarts
count=\$(cat "\$count_file" 2>/dev/null || echo 0)
if [ "\$(saved)" -gt "\$before" ]; then count=0; else count=\$((count + 1)); fi
if [ "\$count" -gt 5 ]; then
  echo "clip_jax: 5 restarts brought no checkpoint: giving up" >&2
  exit "\$status"
fi
echo "\$count" >"\$count_file"
scontrol requeue "\$SLURM_JOB_ID"
exit "\$status"
JOB
)
if [ -n "$dry_run" ]; then
  printf '%s\n' "$job" "" "# sbatch${options[*]:+$(printf ' %q' "${options[@]}")} < the job above"
  exit 0
fi
printf '%s\n' "$job" | sbatch ${options[@]+"${options[@]}"}
