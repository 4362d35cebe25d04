"""The step on a CUDA device: resident slot state, steps captured as graphs, results read while the next step runs."""
