#!/usr/bin/env bash
# Lints the public contract and compares it with the last release's; `--release` makes today's the last release's.
#
#   bash proto/buf/check.sh              lint, and what would break a client of the last release
#   bash proto/buf/check.sh --release    writes released.txtpb anew: a step of a release, and no way to make a check pass
#
# Needs npm, which installs buf as package-lock.json has it. PAGEWIRE_CONTRACT names another folder to look at.
set -euo pipefail
cd "$(dirname "$0")"
contract=${PAGEWIRE_CONTRACT:-..}
buf=node_modules/.bin/buf
if ! cmp -s package-lock.json node_modules/.installed; then
  # The package holds buf itself; its script only makes the command start faster.
  npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
  cp package-lock.json node_modules/.installed
fi
if [ "${1:-}" = --release ]; then
  {
    echo "# The contract of the last release, as descriptors; check.sh --release writes it"
    echo
    "$buf" build "$contract" --exclude-source-info -o -#format=txtpb
  } > released.new
  mv released.new released.txtpb
  exit
fi
status=0
"$buf" lint "$contract" || status=$?
"$buf" breaking "$contract" --against released.txtpb || status=$?
[ $status = 0 ] || exit $status
echo "the contract is well-formed, and breaks no client of the last release"
