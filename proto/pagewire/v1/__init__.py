"""The public contract: `.proto` files and the code generated from them, committed so that nobody needs protoc.

Import the modules by name, as any gRPC client does: `from pagewire.v1 import inference_pb2, inference_pb2_grpc`.
`proto/generate.sh` writes the generated files; CI compares.
"""
