"""The native library as Python calls it; where it cannot be loaded, why not.

The library is called through ctypes on raw addresses, so it needs no header of Python's or torch's; whoever calls
keeps the memory alive and its layout right. It has threads of its own (thread_pool.cpp says why); beside them torch
needs no more than one.
"""

import ctypes
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int32, c_int64, c_void_p
from pathlib import Path

from pagewire.wire.columns import ROW

LIBRARY_FILE = Path(__file__).parent / "libpagewire_native.so"

COMPACT_LEVEL = "avx512bf16"
"""The one that packs bfloat16 in 12 bits; level.cpp."""

INTERFACE = 12
"""`pw_interface` of library.cpp."""
FLOAT32, BFLOAT16 = 0, 1
MAX_HEAD_DIM = 256
HEAD_DIM_MULTIPLE = 16
CHUNK_TOKENS = 256
ROTATION = 64
MAX_INT8_K = 65536


class NativeUnavailable(Exception):
    """The library is not used: why, in one line."""


class AttentionPlan(ctypes.Structure):
    """`AttentionPlan` of kernels.h."""

    _fields_ = (
        ("items", c_void_p),
        ("num_items", c_int64),
        ("num_partials", c_int64),
        ("tokens_read", c_int64),
    )


class AttentionArgs(ctypes.Structure):
    """`AttentionArgs` of kernels.h."""

    _fields_ = (
        ("q", c_void_p),
        ("out", c_void_p),
        ("k", c_void_p),
        ("v", c_void_p),
        ("block_tables", c_void_p),
        ("query_starts", c_void_p),
        ("context_lens", c_void_p),
        ("plan", c_void_p),
        ("partials", c_void_p),
        ("arrivals", c_void_p),
        ("q_stride", c_int64),
        ("table_stride", c_int64),
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("block_size", c_int32),
        ("dtype", c_int32),
        ("scale", c_float),
    )


class RotateArgs(ctypes.Structure):
    """`RotateArgs` of kernels.h."""

    _fields_ = (
        ("qkv", c_void_p),
        ("k", c_void_p),
        ("v", c_void_p),
        ("qk_norm", c_void_p),
        ("cos_sin", c_void_p),
        ("positions", c_void_p),
        ("kv_positions", c_void_p),
        ("qkv_stride", c_int64),
        ("num_rows", c_int64),
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("block_size", c_int32),
        ("dtype", c_int32),
        ("norm_floor", c_float),
    )


class NormArgs(ctypes.Structure):
    """`NormArgs` of kernels.h."""

    _fields_ = (
        ("x", c_void_p),
        ("delta", c_void_p),
        ("weight", c_void_p),
        ("out", c_void_p),
        ("num_rows", c_int64),
        ("width", c_int64),
        ("dtype", c_int32),
        ("norm_floor", c_float),
    )


class SiluMulArgs(ctypes.Structure):
    """`SiluMulArgs` of kernels.h."""

    _fields_ = (
        ("gate_up", c_void_p),
        ("out", c_void_p),
        ("num_rows", c_int64),
        ("width", c_int64),
        ("dtype", c_int32),
    )


class LinearArgs(ctypes.Structure):
    """`LinearArgs` of kernels.h."""

    _fields_ = (
        ("x", c_void_p),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("out", c_void_p),
        ("x_stride", c_int64),
        ("num_rows", c_int64),
        ("k", c_int64),
        ("n", c_int64),
        ("dtype", c_int32),
        ("out_dtype", c_int32),
    )


class Int8LinearArgs(ctypes.Structure):
    """`Int8LinearArgs` of kernels.h."""

    _fields_ = (("linear", LinearArgs), ("rows", c_void_p))


class NativeLibrary:
    """The library's functions. The instruction set and the threads are the process's: the last one loaded decides."""

    def __init__(self, functions: ctypes.CDLL, level: str, num_threads: int) -> None:
        """`load_library` makes them."""
        self.level = level
        self.compacts = level == COMPACT_LEVEL
        self.num_threads = num_threads
        self.plan_attention = functions.pw_plan_attention
        self.plan_attention.argtypes = (c_void_p, c_void_p, c_int32, c_int32, POINTER(AttentionPlan))
        self.plan_attention.restype = None
        self.attend = functions.pw_attend
        self.attend.argtypes = (POINTER(AttentionArgs),)
        self.attend.restype = None
        self.rotate_and_store = functions.pw_rotate_and_store
        self.rotate_and_store.argtypes = (POINTER(RotateArgs),)
        self.rotate_and_store.restype = None
        self.norm = functions.pw_norm
        self.norm.argtypes = (POINTER(NormArgs),)
        self.norm.restype = None
        self.silu_mul = functions.pw_silu_mul
        self.silu_mul.argtypes = (POINTER(SiluMulArgs),)
        self.silu_mul.restype = None
        self.linear = functions.pw_linear
        self.linear.argtypes = (POINTER(LinearArgs),)
        self.linear.restype = None
        self.call_bytes = functions.pw_call_bytes
        self.call_bytes.argtypes = ()
        self.call_bytes.restype = c_int64
        self.begin_capture = functions.pw_begin_capture
        self.begin_capture.argtypes = (c_void_p, c_int64)
        self.begin_capture.restype = None
        self.end_capture = functions.pw_end_capture
        self.end_capture.argtypes = ()
        self.end_capture.restype = c_int64
        self.replay = functions.pw_replay
        self.replay.argtypes = (c_void_p, c_int64)
        self.replay.restype = None
        self.packed_bytes = functions.pw_packed_bytes
        self.packed_bytes.argtypes = (c_int64, c_int64, c_int32)
        self.packed_bytes.restype = c_int64
        self.pack = functions.pw_pack
        self.pack.argtypes = (c_void_p, c_void_p, c_int64, c_int64, c_int32)
        self.pack.restype = None
        self.compactable = functions.pw_compactable
        self.compactable.argtypes = (c_void_p, c_int64, c_int64)
        self.compactable.restype = c_bool
        self.compact_bytes = functions.pw_compact_bytes
        self.compact_bytes.argtypes = (c_int64, c_int64)
        self.compact_bytes.restype = c_int64
        self.pack_compact = functions.pw_pack_compact
        self.pack_compact.argtypes = (c_void_p, c_void_p, c_int64, c_int64)
        self.pack_compact.restype = None
        self.linear_compact = functions.pw_linear_compact
        self.linear_compact.argtypes = (POINTER(LinearArgs),)
        self.linear_compact.restype = None
        self.unpack_compact_rows = functions.pw_unpack_compact_rows
        self.unpack_compact_rows.argtypes = (c_void_p, c_int64, c_void_p, c_void_p, c_int64)
        self.unpack_compact_rows.restype = None
        self.linear_int8 = functions.pw_linear_int8
        self.linear_int8.argtypes = (POINTER(Int8LinearArgs),)
        self.linear_int8.restype = None
        self.int8_packed_bytes = functions.pw_int8_packed_bytes
        self.int8_packed_bytes.argtypes = (c_int64, c_int64)
        self.int8_packed_bytes.restype = c_int64
        self.int8_row_bytes = functions.pw_int8_row_bytes
        self.int8_row_bytes.argtypes = (c_int64,)
        self.int8_row_bytes.restype = c_int64
        self.pack_int8 = functions.pw_pack_int8
        self.pack_int8.argtypes = (c_void_p, c_void_p, c_int64, c_int64, c_int32)
        self.pack_int8.restype = None
        self.unpack_rows = functions.pw_unpack_rows
        self.unpack_rows.argtypes = (c_void_p, c_int64, c_void_p, c_void_p, c_int64, c_int32)
        self.unpack_rows.restype = None
        self.sample = functions.pw_sample
        self.sample.argtypes = (c_void_p, c_int64, c_int64, c_int64, c_int32, *(c_void_p,) * 4)
        self.sample.restype = None
        self.sample_scratch_bytes = functions.pw_sample_scratch_bytes
        self.sample_scratch_bytes.argtypes = (c_int64,)
        self.sample_scratch_bytes.restype = c_int64


def load_library(num_threads: int, level: str | None = None) -> NativeLibrary:
    """The library with the best instruction set of this processor, or with `level`, on up to `num_threads` threads.

    Raises NativeUnavailable.
    """
    if not LIBRARY_FILE.exists():
        raise NativeUnavailable("the package was built without its native library (no C++ compiler then)")
    try:
        functions = ctypes.CDLL(str(LIBRARY_FILE))
    except OSError as error:
        raise NativeUnavailable(f"{LIBRARY_FILE.name} does not load: {error}") from error
    if not hasattr(functions, "pw_interface") or functions.pw_interface() != INTERFACE or not _samples(functions):
        raise NativeUnavailable(f"{LIBRARY_FILE.name} was built from other sources; build the package again")
    functions.pw_choose.argtypes = (c_char_p,)
    functions.pw_choose.restype = c_char_p
    chosen = functions.pw_choose(None if level is None else level.encode())
    if chosen is None:
        raise NativeUnavailable(f"this processor lacks instruction set {level!r}")
    functions.pw_set_threads.argtypes = (c_int32,)
    functions.pw_set_threads.restype = None
    functions.pw_set_threads(num_threads)
    return NativeLibrary(functions, chosen.decode(), num_threads)


def _samples(functions: ctypes.CDLL) -> bool:
    """Whether the library's rows of sampling parameters are those of the wire."""
    functions.pw_sample_layout.restype = c_char_p
    functions.pw_sample_row_bytes.restype = c_int64
    names = " ".join(ROW.names or ()).encode()
    return (functions.pw_sample_layout(), functions.pw_sample_row_bytes()) == (names, ROW.itemsize)
