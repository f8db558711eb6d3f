#!/usr/bin/env bash
# Submits `clip_jax train` to Slurm; a preempted job goes back into the queue and goes on.
#   bash launch/slurm.sh [--dry_run] [OPTIONS OF sbatch] -- --config=NAME --workdir=DIR ...
#   bash launch/slurm.sh --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=12 \
#     --time=24:00:00 -- ...
# One task per GPU, or per host of TPUs; they find each other by Slurm's variables. Give each the
# cores that its input needs (Slurm's default is one). 180 s before its end a job gets SIGTERM, saves
# and ends with 42. It runs slurm_job.sh, which queues it again. --dry_run only prints the job.
# Environment: PYTHON (on the nodes; .venv/bin/python of this checkout, else python3).
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

fail() { echo "error: launch/slurm.sh: $1" >&2; exit 2; }

dry_run="" options=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '2,9s/^# //p' "${BASH_SOURCE[0]}"; exit 0 ;;
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
job=$(
  cat <<JOB
#!/usr/bin/env bash
#SBATCH --job-name=clip_jax
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@180
cd $(printf %q "$PWD") || exit 2
export PYTHON=$(printf %q "$python")
exec bash $(printf %q "$root/launch/slurm_job.sh")$(printf ' %q' "$@")
JOB
)
if [ -n "$dry_run" ]; then
  printf '%s\n' "$job" "" "# sbatch${options[*]:+$(printf ' %q' "${options[@]}")} < the job above"
  exit 0
fi
printf '%s\n' "$job" | sbatch ${options[@]+"${options[@]}"}
