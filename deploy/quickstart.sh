#!/usr/bin/env bash
# From a fresh machine to an answer over gRPC: virtual environment, install, model, service, answer.
#
#   bash deploy/quickstart.sh ["question"]
#
# Needs Python >= 3.11 and nothing else. PYTHON names the interpreter; PAGEWIRE_VENV the environment (default .venv in
# the project), which is used again as long as the project is unchanged. The service ends with the answer.
set -euo pipefail

question=${1:-What is the capital of France?}
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${PAGEWIRE_VENV:-$project/.venv}
# The service takes its settings from PAGEWIRE_* too, and refuses what it does not know.
unset PAGEWIRE_VENV

fail() {
  echo "quickstart: $*" >&2
  exit 1
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3 python}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  fail "needs Python 3.11 or newer on the PATH, or named by PYTHON; ${PYTHON:-python3} is" \
    "$("${PYTHON:-python3}" --version 2>&1 | head -n 1)"
}

# Everything that decides what would be installed, and by which interpreter.
version() {
  "$1" - "$project" <<'EOF'
import hashlib
import pathlib
import sys

project = pathlib.Path(sys.argv[1])
files = [project / "pyproject.toml", project / "deploy" / "constraints.txt"]
for folder in ("proto", "scheduler_svc", "worker", "client"):
    files += (file for file in (project / folder).rglob("*") if file.is_file() and "__pycache__" not in file.parts)
digest = hashlib.sha256(sys.version.encode())
for file in sorted(files):
    digest.update(f"{file.relative_to(project)}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
print(digest.hexdigest())
EOF
}

install() {
  echo "installing into $venv: a minute or two, the first time" >&2
  "$1" -m venv "$venv" ||
    fail "could not make a virtual environment with $1; on Debian and Ubuntu: apt install python3-venv"
  # Built from a copy, because a build leaves files behind in its tree.
  local copy
  copy=$(mktemp -d)
  trap "rm -rf '$copy'" EXIT
  (cd "$project" && cp -R pyproject.toml README.md proto scheduler_svc worker client "$copy")
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    -c "$project/deploy/constraints.txt" "$copy[all]" || fail "the install failed; what pip said stands above"
  rm -rf "$copy"
  trap - EXIT
}

python=$(find_python)
wanted=$(version "$python")
stamp=$venv/pagewire-installed
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  rm -f "$stamp"
  install "$python"
  echo "$wanted" >"$stamp"
fi

"$venv/bin/pagewire" generate --spawn --model smollm2-135m --temperature 0 --max-tokens 256 -- "$question"

case :$PATH: in
  *":$venv/bin:"*) command=pagewire ;;
  *) command=$venv/bin/pagewire ;;
esac
cat <<EOF

That answer came over gRPC from a service that has ended again. How to go on:

  $command serve
      keeps a service running, on 127.0.0.1:50051
  $command generate "Why is the sky blue?"
      asks it; \`$command chat\` talks with it
  $command serve --model Qwen/Qwen3-0.6B
      a better model, where the Hugging Face hub can be reached
  $command doctor
      says what this machine has and lacks

In Python ($venv/bin/python):

  from pagewire.client import local

  with local() as client:
      for piece in client.stream("Once upon a time", max_tokens=32).text:
          print(piece, end="", flush=True)
EOF
