"""Every kernel of `pagewire.worker.kernels.triton` in plain torch, with the same file names and signatures.

They are the definition that the kernels are tested against, and run in their place where there is no GPU. They are
not fast, and may allocate and read tensors back.
"""
