#!/usr/bin/env bash
# Every equality and every speed of a machine with one NVIDIA GPU, in under nine minutes, without a network.
#
#   bash tests/gpu/run.sh                          wheels beside this file, in tests/gpu/wheels, where there are any
#   bash tests/gpu/run.sh --wheels DIR             wheels of that folder; tests/gpu/carry.sh fills one
#   bash tests/gpu/run.sh --dry-run --out DIR      tiny shapes on the CPU; the report goes to DIR (gpu-report)
#
# Needs a Python >= 3.11 with torch >= 2.11 and Triton: the first on the PATH, or the one that PYTHON names. Wheels go
# into an environment of their own over it; without wheels pagewire must be installed beside torch.
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
sys.exit(sys.version_info < (3, 11) or tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11))'
python=""
for candidate in ${PYTHON:-python3 python python3.13 python3.12 python3.11}; do
  if "$candidate" -c "$needs" 2>/dev/null; then python=$candidate; break; fi
done
[ -n "$python" ] || { echo "tests/gpu/run.sh finds no Python >= 3.11 with torch >= 2.11 and Triton" >&2; exit 2; }

if [ -n "$wheels" ]; then
  echo "== environment"
  venv=$(mktemp -d)
  trap 'rm -rf "$venv"' EXIT
  "$python" -m venv --system-site-packages "$venv"
  # Where torch's Python is itself a virtual environment, its packages are not the system's.
  "$python" -c 'import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)))' \
    > "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch-beside.pth"
  python="$venv/bin/python"
  # What is carried and nothing else, by name, so that pip takes the wheel that fits this Python.
  names=$(for wheel in "$wheels"/*.whl; do wheel=${wheel##*/}; echo "${wheel%%-*}"; done | sort -u)
  # shellcheck disable=SC2086
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --find-links "$wheels" --no-deps \
    --ignore-installed $names
fi

"$python" "$here/report" "${arguments[@]}"
