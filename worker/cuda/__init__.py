"""The step on a CUDA device: resident slot state, steps recorded as graphs, results read while the next step runs."""
