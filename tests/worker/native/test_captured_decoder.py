"""Decode steps that the library repeats, against the decoder itself: same plans, same tokens, same cache to the bit."""

import ctypes
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.checkpoints import Checkpoint, checkpoints_in
from support.decoders import ServedModel, served_model_for
from support.local_engine import GREEDY, LocalEngine
from support.step_ops import batch_of
from support.torch_threads import torch_threads

from pagewire.wire.launch import Quantization
from pagewire.wire.model import DType
from pagewire.wire.sampling import SamplingParams
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.cpu.captured_decoder import CapturedDecoder
from pagewire.worker.linears.native import NativeLinears
from pagewire.worker.model.layers import RmsNorm
from pagewire.worker.native.library import NativeLibrary, NormArgs, load_library

DTYPES: dict[DType, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DRAWN = SamplingParams(temperature=1.0, top_k=20, top_p=0.9, seed=5)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    with torch_threads(2):
        yield


@pytest.fixture(scope="module")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    return checkpoints_in(tmp_path_factory.mktemp)


class Counted:
    """Counts what the library was asked to repeat."""

    def __init__(self, library: NativeLibrary) -> None:
        self.replays = 0
        self._replay = library.replay
        library.replay = self

    def __call__(self, calls: int, count: int) -> None:
        self.replays += 1
        self._replay(calls, count)


def two_engines(
    checkpoint: Checkpoint, dtype: DType, quantization: Quantization = "none", **limits: Any
) -> tuple[LocalEngine, LocalEngine, Counted]:
    """One that repeats steps, and one that does not, each with memory of its own; and how often the first did."""
    repeating = served_model_for(checkpoint.spec, dtype, "native", quantization)
    other = served_model_for(checkpoint.spec, dtype, "native", quantization)
    plain = ServedModel(other.decoder, other.decoder, other.kernels)
    assert isinstance(repeating.model, CapturedDecoder)
    engines = [
        LocalEngine(served, chunk=24, num_blocks=200, kv_dtype=DTYPES[dtype], **{"block_size": 4, **limits})
        for served in (repeating, plain)
    ]
    return engines[0], engines[1], Counted(repeating.model._library)


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["qwen3-tied", "qwen3-untied", "llama-llama3-rope"])
def test_arrivals_and_ends_between_repeated_steps(
    checkpoint_of: Callable[[str], Checkpoint], family: str, dtype: DType, quantization: Quantization
) -> None:
    repeating, plain, counted = two_engines(checkpoint_of(family), dtype, quantization)
    draw = random.Random(1)
    arrivals = {turn: handle for handle, turn in enumerate((0, 0, 9, 40, 41, 90, 160))}
    for turn in range(300):
        if (handle := arrivals.get(turn)) is not None:
            prompt = [draw.randrange(256) for _ in range(draw.randrange(1, 60))]
            for engine in (repeating, plain):
                engine.submit(handle, prompt, 30 + 17 * handle, DRAWN if handle % 2 else GREEDY)
        moved = repeating.turn()
        assert plain.turn() == moved
        assert repeating.outputs == plain.outputs
    assert not repeating.scheduler.has_work
    for ours, theirs in zip(repeating.kv.layers, plain.kv.layers, strict=True):
        assert torch.equal(ours, theirs)
    assert 50 < counted.replays < 290, "not all steps can be repeated, and most that can be are"


@pytest.mark.parametrize("count", [2, 4])
def test_a_chunk_of_as_many_rows_as_the_step_before_is_not_that_step(
    checkpoint_of: Callable[[str], Checkpoint], count: int
) -> None:
    """`count` sequences end in one step, and the next is nothing but a prompt of so many tokens, whose arguments are
    the same."""
    engines = two_engines(checkpoint_of("qwen3-tied"), "float32", max_num_seqs=count, block_size=32)[:2]
    for engine in engines:
        for handle in range(count):
            engine.submit(handle, [3, 1, 4, 1, 5], 12, DRAWN)
        engine.submit(count, [9, 8, 7, 6][:count], 4)
        engine.run()
    assert engines[0].outputs == engines[1].outputs
    for ours, theirs in zip(engines[0].kv.layers, engines[1].kv.layers, strict=True):
        assert torch.equal(ours, theirs)


def test_a_capture_belongs_to_one_cache(checkpoint_of: Callable[[str], Checkpoint]) -> None:
    served = served_model_for(checkpoint_of("qwen3-tied").spec, "float32", "native")
    first, second = (KVCache(served.decoder.config, 8, 4, torch.float32) for _ in range(2))
    batch = batch_of(first, [1, 1, 1], 0)
    served.model.forward(batch, first)
    served.model.forward(batch, second)
    assert first.layers[-1].any()
    for one, other in zip(first.layers, second.layers, strict=True):
        assert torch.equal(one, other)


def test_calls_past_the_capacity_are_made_and_counted_but_not_kept() -> None:
    library = load_library(1)
    norm = RmsNorm(torch.ones(16), 1e-6)
    x, h = torch.randn(1, 16), torch.zeros(1, 16)
    args = NormArgs(
        x=x.data_ptr(),
        weight=norm.scaled_weight.data_ptr(),
        out=h.data_ptr(),
        num_rows=1,
        width=16,
        norm_floor=norm.squared_floor,
    )
    calls = torch.zeros(2 * library.call_bytes(), dtype=torch.uint8)
    kept = calls[library.call_bytes() :]
    library.begin_capture(calls.data_ptr(), 1)
    library.norm(ctypes.byref(args))
    h.zero_()
    library.norm(ctypes.byref(args))
    assert library.end_capture() == 2
    assert not kept.any()
    torch.testing.assert_close(h, norm(x))
    x *= -3
    library.norm(ctypes.byref(args))
    h.zero_()
    library.replay(calls.data_ptr(), 1)
    torch.testing.assert_close(h, norm(x))


def test_linears_that_are_read_ahead() -> None:
    library = load_library(2)
    for seed in range(20):
        kind = NativeLinears(library, torch.float32)
        torch.manual_seed(seed)
        linears = [kind.linear(torch.randn(600 + 8 * n, 600), None) for n in range(3)]
        x = torch.randn(2, 600)
        calls = torch.zeros(3 * library.call_bytes(), dtype=torch.uint8)
        library.begin_capture(calls.data_ptr(), 3)
        outputs = [linear(x) for linear in linears]
        assert library.end_capture() == 3
        for _ in range(10):
            x.copy_(torch.randn(2, 600))
            expected = [linear(x).clone() for linear in linears]
            for output in outputs:
                output.zero_()
            library.replay(calls.data_ptr(), 3)
            assert all(map(torch.equal, outputs, expected))
        del kind, linears, outputs  # their memory goes at once, and nobody may be reading it
