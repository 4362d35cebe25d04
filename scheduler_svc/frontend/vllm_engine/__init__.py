"""vLLM's gRPC service, for gateways that speak it: a facade over the same generations."""
