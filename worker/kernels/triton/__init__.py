"""The contract's kernels in Triton. Each has a definition of the same name in `pagewire.worker.kernels.reference`."""
