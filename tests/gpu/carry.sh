#!/usr/bin/env bash
# Fills a folder with what `tests/gpu/run.sh` needs on a machine without a network, besides torch and Triton: the
# project's wheel and those of its dependencies. Run it again after every edit: the project's wheel is built anew, and
# what lies there already is not fetched again.
#
#   bash tests/gpu/carry.sh DIR               everything, transformers too
#   bash tests/gpu/carry.sh DIR NAME...       of the dependencies only these, where that machine has the others
#
# PYTHON_VERSION is the GPU machine's (3.12), which need not be this one's. PLATFORMS are the kinds of wheels it takes.
set -euo pipefail
mkdir -p "${1:?usage: bash tests/gpu/carry.sh DIR [NAME...]}"
target=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
version=${PYTHON_VERSION:-3.12}
machine=$(uname -m)
platforms=${PLATFORMS:-manylinux_2_39 manylinux_2_35 manylinux_2_34 manylinux_2_31 manylinux_2_28 manylinux_2_27
  manylinux_2_26 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux2010 manylinux1}

# From a copy, for building leaves its own files in the tree.
source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT
cp -R pyproject.toml README.md proto scheduler_svc worker client "$source"
rm -f "$target"/pagewire-*.whl
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$target" "$source"
wheel=$(ls "$target"/pagewire-*.whl)
# The whole of what would be installed, less torch and what it alone needs. Each version is the one that the tests ran
# with, and is fetched for the other machine's Python.
"$python" -m pip install --quiet --disable-pip-version-check --dry-run --ignore-installed --report "$source/report.json" \
  -c deploy/constraints.txt "$wheel[all]" transformers
"$python" - "$source/report.json" "$@" > "$source/requirements.txt" <<'PYTHON'
import json, re, sys

def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()

report, *wanted = sys.argv[1:]
wanted = {plain(name) for name in wanted}
theirs = re.compile(r"torch|triton|pagewire|nvidia-.*|cuda-.*|sympy|mpmath|networkx|setuptools")
found = {plain(item["metadata"]["name"]): item["metadata"]["version"] for item in json.load(open(report))["install"]}
for name in sorted(wanted - found.keys()):
    sys.exit(f"{name} is no dependency")
for name, version in found.items():
    if name in wanted or (not wanted and not theirs.fullmatch(name)):
        print(f"{name}=={version}")
PYTHON
kinds=()
for platform in $platforms; do kinds+=(--platform "${platform}_$machine"); done
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --implementation cp \
  --python-version "$version" "${kinds[@]}" --find-links "$target" --dest "$target" -r "$source/requirements.txt"
du -sh "$target"
