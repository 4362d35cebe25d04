"""The Python client, its command line, and everything that uses the service through gRPC."""
