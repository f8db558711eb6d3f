#!/usr/bin/env bash
# Makes a virtual environment with the project in it, unless it stands already:
#   bash launch/setup.sh base     .venv          what training needs (launch/demo.sh calls this)
#   bash launch/setup.sh test     .venv          the tests' packages too (launch/test.sh)
#   bash launch/setup.sh parity   .venv-parity   torch and the peers' packages too; exit status 77
#                                                where no CPU build of torch is to be had
# Environment: PYTHON (the Python to use), VENV (another folder for the environment),
# TORCH_INDEX_URL (a package index with CPU builds of torch).
# Safe to interrupt: an environment counts only once its stamp is written, as the last thing.
set -euo pipefail

case ${PYTHON:-} in
  /*) ;;
  */*) PYTHON=$PWD/$PYTHON ;;
esac
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

kind=${1:-base}
case $kind in
  base) extras=digits venv=${VENV:-.venv} ;;
  test) extras=test venv=${VENV:-.venv} ;;
  parity) extras=digits venv=${VENV:-.venv-parity} ;;
  *) echo "error: launch/setup.sh knows base, test and parity (got $kind)" >&2; exit 2 ;;
esac
made="$venv/.made-by-setup" # only a folder with this file is ever deleted; it names the checkout
log="$venv/setup.log"

fail() { echo "error: $1" >&2; exit 2; }
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
has_uv() { uv --version >/dev/null 2>&1; }

# Sets `python`: $PYTHON, else the newest supported one that runs (a pyenv shim may not).
find_python() {
  local candidate version unfit="" bare=""
  local advice="install Python 3.11 to 3.13, or name one with PYTHON=/path/to/python3.12"
  for candidate in ${PYTHON:+"$PYTHON"} python3.13 python3.12 python3.11 python3 python; do
    version=$(version_of "$candidate") || version=""
    case $version in
      3.11 | 3.12 | 3.13)
        if has_uv || "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
          python=$candidate
          return
        fi
        bare=${bare:-$version} ;;
      ?*) unfit=${unfit:-"$candidate is Python $version"} ;;
    esac
    [ -z "${PYTHON:-}" ] || break
  done
  if [ -n "$bare" ]; then
    fail "Python $bare lacks its venv module; install the package python$bare-venv"
  elif [ -z "${PYTHON:-}" ] && has_uv; then
    python=3.13 # uv brings it
  elif [ -n "$unfit" ]; then
    fail "clip_jax runs on Python 3.11 to 3.13 ($unfit); $advice"
  else
    fail "${PYTHON:-python3} does not run; $advice"
  fi
}

stamp() { # what an environment of kind $1 is made from
  echo "$1 $(cat pyproject.toml setup.py constraints.txt launch/setup.sh | cksum)"
}

usable() { # the environment is of the Python that is asked for, and its paths are this checkout's
  local version
  version=$(version_of "$venv/bin/python") || return 1
  [ "$(cat "$made" 2>/dev/null)" = "$PWD" ] || return 1
  [ -z "${PYTHON:-}" ] || [ "$(version_of "$PYTHON")" = "$version" ]
}

stands() { usable && [ "$(cat "$venv/stamp-$kind" 2>/dev/null)" = "$(stamp "$kind")" ]; }

make() { # a new environment, over what an interrupted call left
  find_python
  if [ -e "$made" ]; then # renamed first: half a deletion must not look like a stranger's folder
    rm -rf "$venv.discarded"
    mv "$venv" "$venv.discarded"
  fi
  rm -rf "$venv.discarded"
  if [ -e "$venv" ]; then fail "$venv was not made by launch/setup.sh; move it away"; fi
  mkdir -p "$venv"
  echo "$PWD" >"$made"
  if has_uv; then
    uv venv --quiet --allow-existing --python "$python" "$venv" >"$log" 2>&1 || explain
  else
    "$python" -m venv "$venv" >"$log" 2>&1 || explain
    install pip || explain
  fi
}

install() {
  if has_uv; then
    uv pip install --python "$venv/bin/python" -c constraints.txt "$@" >>"$log" 2>&1
  else
    "$venv/bin/python" -m pip install --no-input --disable-pip-version-check \
      -c constraints.txt "$@" >>"$log" 2>&1
  fi
}

explain() { # shows the last words of the installer
  tail -n 15 "$log" >&2
  fail "the installation failed, see above and $log; mend that and start the same command again"
}

install_torch() { # only a CPU build will do: the others bring gigabytes of CUDA libraries
  local build=""
  if [ "$(uname)" = Linux ]; then build="+cpu"; fi
  if ! install ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} "torch==2.13.0$build"; then
    grep -qiE 'no matching distribution|no solution found' "$log" || explain
    echo "SKIPPED: the parity tests need a CPU build of torch 2.13.0 for Python $version, and none" \
      "is found here (TORCH_INDEX_URL may name an index that has one)"
    exit 77
  fi
  install --no-deps torchvision==0.28.0 || explain
  install pytest pytest-xdist timm==1.0.31 transformers==5.23.0 || explain
}

if stands; then exit 0; fi
if command -v flock >/dev/null; then
  exec 9>"$venv.lock"
  flock 9 # another call may be at it
  if stands; then exit 0; fi
fi
if ! ls "$venv"/stamp-* >/dev/null 2>&1 || ! usable; then make; fi
rm -f "$venv"/stamp-*
version=$(version_of "$venv/bin/python")
echo "Setting up $venv with Python $version (a few minutes the first time) ..."
if [ "$kind" = parity ]; then install_torch; fi
install setuptools || explain
install --no-build-isolation -e ".[$extras]" || explain
install --no-deps open_clip_torch==3.3.0 || explain # for its file of CLIP's merges
if [ "$kind" = test ]; then stamp base >"$venv/stamp-base"; fi
stamp "$kind" >"$venv/stamp-$kind"
