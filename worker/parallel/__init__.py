"""Tensor parallelism, applied to a model from outside: which part a rank holds, and what ranks tell each other."""
