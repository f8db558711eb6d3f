#!/usr/bin/env bash
# Trains in several processes on this machine, each with virtual CPU devices: what several hosts
# do, on a small scale.
#   bash launch/local.sh --processes=2 --devices_per_process=4 -- --config=digits --workdir=DIR
# What follows -- goes to `clip_jax train`. Exit status: that of the first process that fails.
# --dry_run (before --) prints the commands instead.
# Environment: PYTHON (the Python to set up with), VENV (another folder for the environment).
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

case ${1:-} in
  -h | --help) sed -n '2,7s/^# //p' "${BASH_SOURCE[0]}"; exit 0 ;;
esac
venv=${VENV:-.venv}
case $venv in /*) ;; *) venv=$root/$venv ;; esac
for word in "$@"; do
  case $word in
    --) break ;;
    --dry_run) exec "${PYTHON:-python3}" "$root/launch/local.py" --python="$venv/bin/python" "$@" ;;
  esac
done
bash "$root/launch/setup.sh" base
exec "$venv/bin/python" "$root/launch/local.py" "$@"
