#!/usr/bin/env bash
# Installs what package-lock.json has; nothing is generated. Needs Node and npm.
set -euo pipefail
cd "$(dirname "$0")"
command -v node npm >/dev/null || { echo "needs node and npm" >&2; exit 77; }
if ! cmp -s package-lock.json node_modules/.installed; then
  npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
  cp package-lock.json node_modules/.installed
fi
