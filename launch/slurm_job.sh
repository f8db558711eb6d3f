#!/usr/bin/env bash
# One start of `clip_jax train` on all tasks of a Slurm job, and then: is the job queued again?
#   bash launch/slurm_job.sh --config=NAME --workdir=DIR ...
# Runs inside the jobs of slurm.sh and of `clip_jax sweep --print=slurm`. A job is queued again on 42 and
# when it was killed (128 + n, not 130), but at most 5 times in a row without a new checkpoint.
# Environment: PYTHON (on the nodes; .venv/bin/python of this checkout, else python3).
set -uo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

case ${1:-} in
  -h | --help) sed -n '2,6s/^# //p' "${BASH_SOURCE[0]}"; exit 0 ;;
esac
if [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "error: launch/slurm_job.sh: not inside a job; submit it by launch/slurm.sh" >&2
  exit 2
fi
python=${PYTHON:-$root/.venv/bin/python}
if [ -z "${PYTHON:-}" ] && ! [ -x "$python" ]; then python=python3; fi
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} # one of an array, not all
job=${job:-$SLURM_JOB_ID}

unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY # processes talk to each other directly
# sbatch's --cpus-per-task reaches the tasks by this name only (since Slurm 22.05).
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi

saved() { "$python" "$root/launch/again.py" --saved -- "$@"; }
before=$(saved "$@") || exit 2

# srun gives the highest status of its tasks: 42 where one ended with 1 and its peers saw it gone. So
# the first that fails writes down its own, as in local.sh. The trap lets this shell outlive a signal
# that is for what it runs, and is not inherited.
first=clip_jax-$job.first
rm -f "$first"
# shellcheck disable=SC2016  # the task expands it
task='trap : TERM INT HUP; "$@"; s=$?; [ "$s" = 0 ] || (set -C; echo "$s" >"$0") 2>/dev/null; exit "$s"'
# The processes end each other; --wait is for one that cannot.
srun --wait=60 bash -c "$task" "$first" "$python" -u -m clip_jax train "$@"
status=$?
if [ -s "$first" ]; then status=$(cat "$first"); fi
rm -f "$first"
if [ "$status" -ne 42 ] && { [ "$status" -lt 128 ] || [ "$status" -eq 130 ]; }; then
  exit "$status"
fi

# How often in a row it brought no checkpoint stands beside the log.
count_file=clip_jax-$job.restarts
count=$(cat "$count_file" 2>/dev/null || echo 0)
if [ "$(saved "$@")" -gt "$before" ]; then count=0; else count=$((count + 1)); fi
if [ "$count" -gt 5 ]; then
  echo "clip_jax: 5 restarts brought no checkpoint: giving up" >&2
  exit "$status"
fi
echo "$count" >"$count_file"
scontrol requeue "$job"
exit "$status"
