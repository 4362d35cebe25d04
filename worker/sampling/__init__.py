"""Sampling on a CPU: one token for each row of logits, and the randomness that every sampler shares."""
