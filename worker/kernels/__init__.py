"""Kernels: their contract (workspaces, tensors), the reference in torch, and Triton's for CUDA devices."""
