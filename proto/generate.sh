#!/usr/bin/env bash
# Regenerates the committed code of the public contract. `--check` compares instead of writing (CI does).
set -euo pipefail
cd "$(dirname "$0")"
python=$(command -v "${PYTHON:-python3}")
# protoc looks for its plugins on the PATH; they are installed beside the interpreter.
PATH=$(dirname "$python"):$PATH
out=.
if [ "${1:-}" = --check ]; then
  out=$(mktemp -d)
  trap 'rm -rf "$out"' EXIT
fi
"$python" -m grpc_tools.protoc -I . --python_out="$out" --pyi_out="$out" pagewire/v1/*.proto
"$python" -m grpc_tools.protoc -I . --grpc_python_out="$out" --mypy_grpc_out="quiet:$out" \
  $(grep -l '^service ' pagewire/v1/*.proto)
if [ "$out" != . ]; then
  for file in $(cd "$out" && find . -type f); do
    diff -u "$file" "$out/$file" || { echo "$file is not what its .proto generates: run proto/generate.sh" >&2; exit 1; }
  done
  echo "generated code is up to date"
fi
