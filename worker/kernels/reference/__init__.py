"""The reference kernels: the contract's definitions in plain torch, with the file names of
`pagewire.worker.kernels.triton`.

Triton's are tested against them, and they run in their place where there is no GPU. They are not fast, and may allocate
and read tensors back.
"""
