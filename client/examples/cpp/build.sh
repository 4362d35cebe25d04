#!/usr/bin/env bash
# Generates and compiles build/client. GOOGLEAPIS names a folder with google/rpc/*.proto.
set -euo pipefail
cd "$(dirname "$0")"
for tool in cmake g++ pkg-config protoc grpc_cpp_plugin; do
  command -v $tool >/dev/null || missing="${missing:-} $tool"
done
[ -e /usr/include/nlohmann/json.hpp ] || missing="${missing:-} nlohmann/json.hpp"
[ -z "${missing:-}" ] || {
  echo "needs$missing: apt-get install cmake g++ pkg-config libgrpc++-dev protobuf-compiler-grpc nlohmann-json3-dev" >&2
  exit 77
}
# PyPI's googleapis-common-protos has them beside its Python modules.
: "${GOOGLEAPIS:=$("${PYTHON:-python3}" -c 'import google.rpc; print([*google.rpc.__path__][0] + "/../..")' 2>/dev/null || true)}"
[ -d "$GOOGLEAPIS/google/rpc" ] || { echo "needs google/rpc/*.proto: pip install googleapis-common-protos" >&2; exit 77; }
cmake -S . -B build -DCMAKE_BUILD_TYPE=Release -DGOOGLEAPIS="$GOOGLEAPIS" >/dev/null
cmake --build build --parallel >/dev/null
