"""Kernels: their contract and workspaces, the reference in torch, Triton's for CUDA devices, and the sets of both."""
