"""A worker process: weights, KV tensors, sampling. It decides nothing; it executes step plans in order."""
