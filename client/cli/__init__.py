"""The command `pagewire`, but for its benchmarks: one module per command, and what commands share.

`pagewire.client.__main__` puts them together.
"""
