"""Gateway: the service as OpenAI's clients expect one, over HTTP; a gRPC client like any other."""
