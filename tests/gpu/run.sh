#!/usr/bin/env bash
# Every equality and every speed of a machine with one NVIDIA GPU, in under seven minutes, without a network.
#
#   bash tests/gpu/run.sh                          wheels beside this file, in tests/gpu/wheels, where there are any
#   bash tests/gpu/run.sh --wheels DIR             wheels of that folder; tests/gpu/carry.sh fills one
#   bash tests/gpu/run.sh --only PART...           some of its parts, as its table names them
#   bash tests/gpu/run.sh --only exact             what is computed again, bit by bit, and what that costs
#   bash tests/gpu/run.sh --sweep                  attention cut in other ways than it ships, and nothing else
#   bash tests/gpu/run.sh --peer                   a comparison with transformers' continuous batching, and nothing else
#   bash tests/gpu/run.sh --dry-run --out DIR      tiny shapes on the CPU; the report goes to DIR (gpu-report)
#
# Needs a Python >= 3.11 with torch >= 2.11 and Triton: the first on the PATH, or the one that PYTHON names. Wheels go
# into a folder that its import path begins with; without wheels pagewire must be installed beside torch.
# The report is of use at every moment: a run that is killed leaves what it has found.
# Exits with 0 where everything held, 1 where something did not, 2 where it cannot run.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

wheels="" arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    --wheels) wheels=$(cd "${2:?--wheels needs a folder}" && pwd); shift 2 ;;
    *) arguments+=("$1"); shift ;;
  esac
done
if [ -z "$wheels" ] && compgen -G "$here/wheels/*.whl" >/dev/null; then wheels="$here/wheels"; fi

needs='
import sys
import torch, triton
if sys.version_info < (3, 11) or tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11):
    sys.exit(f"Python {sys.version.split()[0]}, torch {torch.__version__}")'
python="" reasons=""
for candidate in ${PYTHON:-python3 python python3.13 python3.12 python3.11}; do
  if said=$("$candidate" -c "$needs" 2>&1); then python=$candidate; break; fi
  reasons+="  $candidate: ${said##*$'\n'}"$'\n'
done
if [ -z "$python" ]; then
  printf 'tests/gpu/run.sh finds no Python >= 3.11 with torch >= 2.11 and Triton\n%s' "$reasons" >&2
  exit 2
fi

if [ -n "$wheels" ]; then
  echo "== what is carried"
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  # That and nothing else, by name, so that pip takes the wheel that fits this Python.
  names=$(for wheel in "$wheels"/*.whl; do wheel=${wheel##*/}; echo "${wheel%%-*}"; done | sort -u)
  # shellcheck disable=SC2086
  "$python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-compile --no-index \
    --find-links "$wheels" --no-deps --target "$site" $names || exit 2
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
"$python" "$here/report/installed.py" || { echo "tests/gpu/carry.sh makes a wheel of this tree" >&2; exit 2; }

"$python" "$here/report" --spent "$SECONDS" "${arguments[@]}"
