"""Endings: exceptions that end a task or a process, apart from those that say something failed."""

import asyncio

_ENDINGS = (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit)


def is_ending(error: BaseException) -> bool:
    """Whether an exception asks its task or process to end, instead of saying that something failed.

    Not every failure is an `Exception`: a panic in a library written in Rust (tokenizers, safetensors) reaches Python
    as pyo3's PanicException, which derives from BaseException. Whoever answers for a failure catches BaseException and
    lets endings through.
    """
    return isinstance(error, _ENDINGS)
