#!/usr/bin/env bash
# Generates and compiles build/classes, with Debian's jars. GOOGLEAPIS names a folder with google/rpc/*.proto.
set -euo pipefail
cd "$(dirname "$0")"
for tool in java javac protoc grpc_java_plugin; do
  command -v $tool >/dev/null || missing="${missing:-} $tool"
done
jars=/usr/share/java
classpath=
for jar in grpc-{api,context,core,netty,protobuf,protobuf-lite,stub} protobuf gson guava perfmark-api jctools-core \
  netty-{buffer,codec,codec-http,codec-http2,common,handler,resolver,transport} geronimo-annotation-1.3-spec; do
  [ -e $jars/$jar.jar ] || missing="${missing:-} $jar.jar"
  classpath+=:$jars/$jar.jar
done
[ -z "${missing:-}" ] || {
  echo "needs$missing: apt-get install default-jdk-headless libgrpc-java libprotobuf-java libgoogle-gson-java" \
    "libguava-java libnetty-java libperfmark-java libgeronimo-annotation-1.3-spec-java" \
    "protobuf-compiler protobuf-compiler-grpc-java-plugin" >&2
  exit 77
}
# PyPI's googleapis-common-protos has them beside its Python modules.
: "${GOOGLEAPIS:=$("${PYTHON:-python3}" -c 'import google.rpc; print([*google.rpc.__path__][0] + "/../..")' 2>/dev/null || true)}"
[ -d "$GOOGLEAPIS/google/rpc" ] || { echo "needs google/rpc/*.proto: pip install googleapis-common-protos" >&2; exit 77; }
proto=../../../proto
mkdir -p build/generated build/classes
protoc -I $proto --java_out=build/generated --plugin=protoc-gen-grpc-java="$(command -v grpc_java_plugin)" \
  --grpc-java_out=build/generated $proto/pagewire/v1/{generation,inference}.proto
protoc -I "$GOOGLEAPIS" --java_out=build/generated "$GOOGLEAPIS"/google/rpc/{status,error_details}.proto
echo "-cp build/classes$classpath" > build/options
find build/generated -name '*.java' > build/sources
javac -nowarn -encoding UTF-8 -d build/classes @build/options @build/sources Client.java
