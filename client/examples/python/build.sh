#!/usr/bin/env bash
# Makes the stub of pagewire.v1 from the contract alone. Needs Python with grpcio-tools and grpcio-status.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-python3}
"$python" -c 'import grpc_tools, grpc_status' 2>/dev/null || {
  echo "needs grpcio-tools and grpcio-status: pip install grpcio-tools grpcio-status" >&2
  exit 77
}
proto=../../../proto
mkdir -p build
"$python" -m grpc_tools.protoc -I $proto --python_out=build --grpc_python_out=build $proto/pagewire/v1/*.proto
touch build/pagewire/v1/__init__.py # found before a pagewire that is installed
