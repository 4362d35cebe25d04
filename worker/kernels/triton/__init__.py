"""Kernels in Triton. Each has a definition of the same name and signature in `pagewire.worker.kernels.reference`."""
