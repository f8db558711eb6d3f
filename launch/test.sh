#!/usr/bin/env bash
# Runs the tests, from nothing:
#   bash launch/test.sh [PYTEST ARGUMENTS]            all that need neither torch nor an accelerator
#   bash launch/test.sh --parity [PYTEST ARGUMENTS]   those that compare with torch and the peers
# Paths in the arguments are relative to the root of the repository.
# Environment: PYTHON (the Python to set up with), VENV (another folder for the environment).
set -euo pipefail
cd "$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"

kind=test marks="not parity and not gpu and not tpu"
if [ "${1:-}" = --parity ]; then
  kind=parity marks=parity
  shift
fi
if [ "$kind" = parity ]; then venv=${VENV:-.venv-parity}; else venv=${VENV:-.venv}; fi

bash launch/setup.sh "$kind" && status=0 || status=$?
case $status in
  0) ;;
  77) exit 0 ;; # it has said why
  *) exit "$status" ;;
esac
exec "$venv/bin/python" -m pytest -m "$marks" "$@"
