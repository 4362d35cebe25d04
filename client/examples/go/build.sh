#!/usr/bin/env bash
# Generates the contract's package and compiles build/client, with Debian's packages instead of a module proxy.
set -euo pipefail
cd "$(dirname "$0")"
packages=/usr/share/gocode
for tool in go protoc protoc-gen-go protoc-gen-go-grpc; do
  command -v $tool >/dev/null || missing="${missing:-} $tool"
done
for package in google.golang.org/grpc google.golang.org/genproto/googleapis/rpc/errdetails \
  github.com/golang/protobuf/ptypes/any; do
  [ -d $packages/src/$package ] || missing="${missing:-} $package"
done
[ -z "${missing:-}" ] || {
  echo "needs$missing: apt-get install golang-go protobuf-compiler protoc-gen-go protoc-gen-go-grpc" \
    "golang-google-grpc-dev golang-google-genproto-dev golang-github-golang-protobuf-1-5-dev" >&2
  exit 77
}
proto=../../../proto
# The contract names no Go package; where its code goes is said here.
options=paths=source_relative
for file in generation inference; do
  options+=,Mpagewire/v1/$file.proto=pagewire/v1
done
mkdir -p build/src
protoc -I $proto --go_out=build/src --go_opt=$options --go-grpc_out=build/src --go-grpc_opt=$options \
  $proto/pagewire/v1/{generation,inference}.proto
GO111MODULE=off GOPATH="$PWD/build:$packages" GOFLAGS= go build -o build/client client.go
