"""Weights: where a model's tensors come from, and the decoder that is built of them."""
