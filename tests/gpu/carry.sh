#!/usr/bin/env bash
# Fills a folder with what `tests/gpu/run.sh` needs on a machine without a network, besides torch and Triton: the
# project's wheel, its dependencies and transformers, for this machine's kind of processor and its Python.
#
#   bash tests/gpu/carry.sh DIR       PYTHON names a Python of the GPU machine's version
#
# All of it, also what that machine has in another version: transformers, for one, takes few versions of the hub's package.
set -euo pipefail
mkdir -p "${1:?usage: bash tests/gpu/carry.sh DIR}"
target=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}

# From a copy, for building leaves its own files in the tree.
source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT
cp -R pyproject.toml README.md proto scheduler_svc worker client "$source"
rm -f "$target"/pagewire-*.whl
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$target" "$source"
wheel=$(ls "$target"/pagewire-*.whl)
# The whole of what would be installed, less torch and what it alone needs.
"$python" -m pip install --quiet --disable-pip-version-check --dry-run --ignore-installed --report "$source/report.json" \
  -c deploy/constraints.txt "$wheel[all]" transformers
"$python" - "$source/report.json" > "$source/requirements.txt" <<'PYTHON'
import json, re, sys
theirs = re.compile(r"torch|triton|pagewire|nvidia[-_].*|cuda[-_].*|sympy|mpmath|networkx|setuptools")
for item in json.load(open(sys.argv[1]))["install"]:
    name = item["metadata"]["name"]
    if not theirs.fullmatch(name.lower()):
        print(f"{name}=={item['metadata']['version']}")
PYTHON
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$target" \
  -r "$source/requirements.txt"
du -sh "$target"
