"""The CPU side of the service: supervisor, frontends (gRPC) and the engine (scheduling)."""
