"""The library's sampler against torch's and numpy's, at every instruction set of this machine.

A token may differ where a draw falls within a rounding error of an edge between two ids: such draws are counted.
"""

import numpy as np
import pytest
import torch
from support.min_p import VOCAB_SIZE, min_p_rows
from support.sampling_rows import sampling_rows

from pagewire.wire.columns import Int32Array, SamplingRows
from pagewire.wire.plan import NO_TOKEN
from pagewire.worker.native.library import NativeLibrary
from pagewire.worker.sampling.native_sampler import NativeSampler
from pagewire.worker.sampling.sampler import Sampler

INF, NAN = float("inf"), float("nan")
OUT_OF_RANGE = [
    ("temperature", NAN),
    ("temperature", -1.0),
    ("top_p", NAN),
    ("top_p", -0.5),
    ("top_p", 1.5),
    ("top_k", -1),
    ("min_p", NAN),
    ("min_p", -0.5),
    ("min_p", 1.5),
]
NUM_ROWS = 60
SETTINGS = [
    (0.0, 0, 1.0),
    (1.0, 0, 1.0),
    (0.6, 0, 1.0),
    (1.0, 1, 1.0),
    (1.5, 20, 1.0),
    (1.0, 20, 0.8),
    (1.0, 0, 0.5),
    (0.7, 0, 0.95),
    (1.0, 0, 0.0),
    (1.0, 100_000, 0.9),
    (1e-6, 0, 1.0),
]


Rows = tuple[SamplingRows, Int32Array]


def rows(count: int, temperature: float, top_k: int, top_p: float) -> Rows:
    asked = sampling_rows(count, temperature=temperature, top_k=top_k, top_p=top_p, seed=np.arange(count))
    return asked, np.arange(count).astype(np.int32) + 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocab", [1, 7, 128, 129, 5003])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_tokens_are_those_of_torch(
    library: NativeLibrary, settings: tuple[float, int, float], vocab: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(vocab)
    logits = (3 * torch.randn(NUM_ROWS, vocab)).to(dtype)
    wanted = rows(NUM_ROWS, *settings)
    ours = NativeSampler(library, vocab).sample(logits, *wanted)
    theirs = Sampler(vocab).sample(logits, *wanted)
    assert (ours != theirs).sum() <= 1
    assert (ours >= 0).all()
    assert (ours < vocab).all()


def test_ties_go_to_the_lowest_id(library: NativeLibrary) -> None:
    logits = torch.zeros(4, 1000)
    logits[1, 300:] = 2.0
    logits[2, [999, 500, 501]] = 1.0
    logits[3] = -INF
    logits[3, 700] = -1e30
    sampler = NativeSampler(library, 1000)
    assert sampler.sample(logits, *rows(4, 0.0, 0, 1.0)).tolist() == [0, 300, 500, 700]
    assert sampler.sample(logits, *rows(4, 1.0, 1, 1.0)).tolist() == [0, 300, 500, 700]
    assert sampler.sample(logits, *rows(4, 1.0, 0, 0.0)).tolist() == [0, 300, 500, 700]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_broken_row_has_no_token_and_disturbs_no_other(
    library: NativeLibrary, settings: tuple[float, int, float]
) -> None:
    torch.manual_seed(1)
    logits = torch.randn(6, 777)
    sampler, wanted = NativeSampler(library, 777), rows(6, *settings)
    expected = sampler.sample(logits, *wanted).tolist()
    logits[1, 776] = NAN
    logits[2, 5] = INF
    logits[4] = -INF
    assert sampler.sample(logits, *wanted).tolist() == [
        expected[0], NO_TOKEN, NO_TOKEN, expected[3], NO_TOKEN, expected[5]
    ]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), OUT_OF_RANGE)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_parameters_out_of_range_draw_nothing_and_come_to_an_end(
    library: NativeLibrary, settings: tuple[float, int, float], field: str, value: float
) -> None:
    torch.manual_seed(3)
    logits = torch.randn(3, 777)
    sampler, wanted = NativeSampler(library, 777), rows(3, *settings)
    good = sampler.sample(logits, *wanted).tolist()
    wanted[0][field][1] = value
    assert sampler.sample(logits, *wanted).tolist() == [good[0], NO_TOKEN, good[2]]


def test_rows_that_do_not_belong_to_the_logits_are_refused(library: NativeLibrary) -> None:
    sampler = NativeSampler(library, 300)
    for count in (1, 3):
        with pytest.raises(ValueError, match=rf"rows are .* \({count},\) for 2 rows of logits"):
            sampler.sample(torch.zeros(2, 300), *rows(count, 1.0, 0, 1.0))
    with pytest.raises(ValueError, match="logits have 299 ids; the sampler is for 300"):
        sampler.sample(torch.zeros(2, 299), *rows(2, 1.0, 0, 1.0))
    asked, positions = rows(2, 1.0, 0, 1.0)
    with pytest.raises(ValueError, match=r"positions are int64 \(2,\) .* must be int32 \(2,\)"):
        sampler.sample(torch.zeros(2, 300), asked, positions.astype(np.int64))  # type: ignore[arg-type]
    narrow = np.zeros(2, [(name, "<f4") for name in asked.dtype.names or ()])
    with pytest.raises(ValueError, match=r"rows are \[.* they must be \[?"):
        sampler.sample(torch.zeros(2, 300), narrow, positions)


@pytest.mark.parametrize("settings", SETTINGS[1:], ids=str)
def test_an_id_of_no_probability_is_never_drawn(library: NativeLibrary, settings: tuple[float, int, float]) -> None:
    logits = torch.full((400, 300), -INF)
    logits[:, [3, 128, 255]] = 1.0
    tokens = NativeSampler(library, 300).sample(logits, *rows(400, *settings))
    assert set(tokens.tolist()) <= {3, 128, 255}


def test_strided_rows(library: NativeLibrary) -> None:
    torch.manual_seed(2)
    logits = torch.randn(5, 640)
    sampler, wanted = NativeSampler(library, 333), rows(5, 1.0, 0, 1.0)
    assert (
        sampler.sample(logits[:, :333], *wanted).tolist()
        == sampler.sample(logits[:, :333].contiguous(), *wanted).tolist()
    )


def test_frequencies_follow_the_distribution(library: NativeLibrary) -> None:
    logits = torch.tensor([0.5, 2.0, -1.0, 1.0, 0.0] * 60)[:257]
    count = 20_000
    tokens = NativeSampler(library, 257).sample(logits.expand(count, -1).contiguous(), *rows(count, 1.0, 0, 1.0))
    frequencies = np.bincount(tokens, minlength=257) / count
    assert np.abs(frequencies - logits.softmax(0).numpy()).max() < 0.004


@pytest.mark.parametrize("seed", range(2))
def test_min_p_draws_as_transformers_processes(library: NativeLibrary, seed: int) -> None:
    rows = min_p_rows(seed)
    rows.check(NativeSampler(library, VOCAB_SIZE).sample(rows.logits_SV, rows.asked, rows.positions))
