#!/usr/bin/env bash
# Trains and evaluates on the embedded glyphs, from nothing:
#   bash launch/demo.sh [--quick] [--workdir=DIR] [--config.FIELD=VALUE ...]
# --quick trains less. A second call resumes the run, or says that it is finished.
# Environment: PYTHON (the Python to set up with), JAX_PLATFORMS (cpu, cuda or tpu).
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

config=glyphs workdir="" options=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '2,5s/^# //p' "${BASH_SOURCE[0]}"; exit 0 ;;
    --quick) config=glyphs:quick ;;
    --workdir=*) workdir=${1#*=} ;;
    --workdir) workdir=${2:?error: --workdir needs a folder}; shift ;;
    --config.*=* | --noconfig.*) options+=("$1") ;;
    --config.*) options+=("$1" "${2:?error: $1 needs a value}"); shift ;;
    *) echo "error: launch/demo.sh: no option '$1'; --help tells them" >&2; exit 2 ;;
  esac
  shift
done
if [ -z "$workdir" ]; then
  workdir=$root/runs/demo
  if [ "$config" = glyphs:quick ]; then workdir=${workdir}_quick; fi
fi

bash "$root/launch/setup.sh" base

# Without these glibc gives the large buffers of every step back to the system, and gets them anew.
export MALLOC_MMAP_THRESHOLD_=${MALLOC_MMAP_THRESHOLD_:-4294967296}
export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-8589934592}
export MALLOC_TOP_PAD_=${MALLOC_TOP_PAD_:-268435456}
export MALLOC_ARENA_MAX=${MALLOC_ARENA_MAX:-1} # the settings above hold for the first arena only
if [ -z "${JAX_PLATFORMS:-}" ] && ! command -v nvidia-smi >/dev/null &&
  ! compgen -G "/dev/accel*" >/dev/null && ! [ -e /dev/vfio ]; then
  export JAX_PLATFORMS=cpu
fi

venv=${VENV:-.venv}
case $venv in /*) ;; *) venv=$root/$venv ;; esac
"$venv/bin/python" -m clip_jax train --config="$config" --workdir="$workdir" \
  ${options[@]+"${options[@]}"}
