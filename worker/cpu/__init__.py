"""The CPU device: its runner, its choice of kernels, and how it is loaded."""
