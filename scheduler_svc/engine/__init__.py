"""The engine process: sequences, blocks, prefix cache, step plans. It knows neither text nor gRPC nor tensors."""
