#!/usr/bin/env bash
# The whole suite, from nothing: environment, wheel, linters, types, tests. Needs Python >= 3.11 and nothing else.
#
#   bash tests/run.sh                 everything
#   bash tests/run.sh tests/scheduler_svc/engine    pytest's arguments: a part, without the static checks
#   bash tests/run.sh faults                        processes killed under load, for an hour: tests/faults has its arguments
#
# PAGEWIRE_TEST_VENV names the environment (default .venv-test); it is reused while its pins are unchanged.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-}
for candidate in python3.13 python3.12 python3.11 python3; do
  [ -n "$python" ] && break
  if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$candidate
  fi
done
[ -n "$python" ] || { echo "tests/run.sh needs Python 3.11 or newer on the PATH" >&2; exit 1; }

venv=${PAGEWIRE_TEST_VENV:-.venv-test}
stamp="$venv/installed"
pins=$(cat pyproject.toml deploy/constraints.txt | sha256sum | cut -d' ' -f1)
if [ "$(cat "$stamp" 2>/dev/null)" != "$pins" ]; then
  echo "== environment"
  rm -rf "$venv"
  "$python" -m venv "$venv"
  # The dependencies alone; the project itself follows as a wheel, so that what is tested is what would be shipped.
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c deploy/constraints.txt ".[dev]"
  "$venv/bin/python" -m pip uninstall --quiet --yes pagewire
  echo "$pins" > "$stamp"
fi

echo "== wheel"
dist=$(mktemp -d)
trap 'rm -rf "$dist"' EXIT
"$venv/bin/python" -m build --quiet --wheel --no-isolation --outdir "$dist" .
rm -rf build ./*.egg-info
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall "$dist"/*.whl
export PAGEWIRE_TEST_WHEEL=$(echo "$dist"/*.whl)

if [ $# -eq 0 ]; then
  echo "== lint"
  "$venv/bin/ruff" check .
  "$venv/bin/ruff" format --check .
  echo "== types"
  "$venv/bin/mypy" -p pagewire.wire -p pagewire.scheduler_svc -p pagewire.worker -p pagewire.client
  echo "== imports"
  "$venv/bin/lint-imports" --no-cache
  echo "== generated code"
  PYTHON=$(pwd)/$venv/bin/python bash proto/generate.sh --check
fi

if [ "${1:-}" = faults ]; then
  shift
  echo "== faults"
  "$venv/bin/python" tests/faults "$@"
  exit
fi

echo "== tests"
if [ $# -gt 0 ]; then
  "$venv/bin/python" -m pytest "$@"
  exit
fi
# Two at a time: most of a service's test waits for processes to start. What bounds a time or memory comes after them.
"$venv/bin/python" -m pytest -n 2 --dist worksteal -m "not alone"
mapfile -t files < <(grep -rl --include="test_*.py" "mark\.alone" tests)
"$venv/bin/python" -m pytest -m alone "${files[@]}"
