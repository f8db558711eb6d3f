#!/usr/bin/env bash
# Trains in several processes on this machine, each with virtual CPU devices: what several hosts
# do, on a small scale.
#   bash launch/local.sh --processes=2 --devices_per_process=4 -- --config=digits --workdir=DIR
# What follows -- goes to `clip_jax train`. Exit status: that of the first process that fails.
# Environment: PYTHON (the Python to set up with), VENV (another folder for the environment).
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

case ${1:-} in
  -h | --help) sed -n '2,6s/^# //p' "${BASH_SOURCE[0]}"; exit 0 ;;
esac
bash "$root/launch/setup.sh" base

venv=${VENV:-.venv}
case $venv in /*) ;; *) venv=$root/$venv ;; esac
exec "$venv/bin/python" "$root/launch/local.py" "$@"
