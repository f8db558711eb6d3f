#!/usr/bin/env bash
# Writes constraints.txt anew: the newest versions that go together, on both ends of the range.
#   bash launch/constraints.sh PYTHON3.11 PYTHON3.13
# Then run .ci/run: it installs from the new file.
set -euo pipefail
cd "$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
if [ $# != 2 ]; then echo "usage: bash launch/constraints.sh PYTHON3.11 PYTHON3.13" >&2; exit 2; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for python in "$@"; do
  venv=$work/$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install --upgrade --quiet pip setuptools
  # The last line is what torch and the peers of `launch/setup.sh parity` need; torch itself is
  # left out, for its versions carry the name of a build.
  "$venv/bin/python" -m pip install --quiet ".[dev,plan]" \
    networkx sympy transformers==5.23.0
  "$venv/bin/python" -m pip freeze --all --exclude clip-jax-pretrain >"$venv.txt"
done
"$venv/bin/python" - "$work"/3.*.txt >"$work/constraints" <<'PYTHON'
import pathlib, sys

low, high = (
    dict(line.split("==") for line in pathlib.Path(p).read_text().split()) for p in sys.argv[1:]
)
print("# Made by launch/constraints.sh: what the tests run with on Python 3.11, and on 3.12 and up.")
for name in sorted({*low, *high}, key=str.lower):
    if low.get(name) == high.get(name):
        print(f"{name}=={low[name]}")
        continue
    if name in low:
        print(f'{name}=={low[name]} ; python_version < "3.12"')
    if name in high:
        print(f'{name}=={high[name]} ; python_version >= "3.12"')
PYTHON
mv "$work/constraints" constraints.txt
echo "constraints.txt: $(grep -c == constraints.txt) lines"
