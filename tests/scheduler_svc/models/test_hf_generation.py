"""generation_config.json: defaults of sampling, and what is said of the keys that are not applied."""

import json
from typing import Any

import pytest
import torch
import transformers
from transformers.generation.logits_process import TopPLogitsWarper

from pagewire.scheduler_svc.models.hf_generation import GENERATION_KEYS, NARROWEST_TOP_P, read_generation_config
from pagewire.scheduler_svc.startup_errors import ModelError
from pagewire.wire.sampling import SamplingParams


@pytest.mark.parametrize(
    ("config", "eos", "sampling"),
    [
        ({}, (), SamplingParams()),
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [5, 3]},
            (5, 3),
            SamplingParams(temperature=0.6, top_k=20, top_p=0.95),
        ),
        ({"do_sample": False, "temperature": 0.6, "eos_token_id": 4}, (4,), SamplingParams(temperature=0.0)),
        ({"temperature": 100.0}, (), SamplingParams(temperature=100.0)),
        ({"min_p": 0.05}, (), SamplingParams(min_p=0.05)),
        ({"repetition_penalty": 1.05}, (), SamplingParams(repetition_penalty=1.05)),
        ({"temperature": None, "top_k": None, "top_p": None}, (), SamplingParams()),
    ],
)
def test_generation_config(config: dict[str, Any], eos: tuple[int, ...], sampling: SamplingParams) -> None:
    generation = read_generation_config(json.dumps(config).encode(), vocab_size=100)
    assert (generation.eos_token_ids, generation.sampling) == (eos, sampling)


def test_generation_config_out_of_range() -> None:
    with pytest.raises(ModelError, match=r"generation_config\.json: top_p = 1\.5 must be 0 to 1"):
        read_generation_config(b'{"top_p": 1.5}', 100)


def test_falsy_values_are_values() -> None:
    """top_p 0 keeps one token, as transformers does; top_k 0 keeps all; temperature 0 is greedy."""
    scores = torch.tensor([[0.0, 1.0, 1.0, 0.5]])
    assert TopPLogitsWarper(0.0)(torch.zeros(1, 0), scores).isfinite().sum() == 1
    generation = read_generation_config(b'{"temperature": 0, "top_k": 0, "top_p": 0, "eos_token_id": 0}', 100)
    assert generation.sampling == SamplingParams(temperature=0.0, top_k=0, top_p=NARROWEST_TOP_P)
    assert generation.eos_token_ids == (0,)


def test_more_tokens_than_there_are_is_all_of_them() -> None:
    assert read_generation_config(b'{"top_k": 100}', 100).sampling.top_k == 0
    assert read_generation_config(b'{"top_k": 99}', 100).sampling.top_k == 99


def test_every_key_that_transformers_has_is_known() -> None:
    theirs = transformers.GenerationConfig()
    documented = {key for key in vars(theirs) if not key.startswith("_")}
    assert documented - GENERATION_KEYS == set()


def test_what_transformers_writes_by_default_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    defaults = transformers.GenerationConfig._get_default_generation_params()
    read_generation_config(json.dumps(defaults | {"top_k": 0, "transformers_version": "5"}).encode(), 100)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("typical_p", 0.9),
        ("epsilon_cutoff", 3e-4),
        ("no_repeat_ngram_size", 3),
        ("bad_words_ids", [[5]]),
        ("suppress_tokens", [5]),
        ("forced_eos_token_id", 2),
        ("max_new_tokens", 2048),
        ("min_new_tokens", 5),
        ("stop_strings", "END"),
        ("num_beams", 4),
        ("guidance_scale", 1.5),
        ("penalty_alpha", 0.6),
    ],
)
def test_what_would_change_the_output_and_is_not_applied_is_said(
    key: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    read_generation_config(json.dumps({key: value}).encode(), 100)
    assert f"generation_config.json sets {key} = {value!r}, which is not applied" in caplog.text


def test_unknown_keys_are_named(caplog: pytest.LogCaptureFixture) -> None:
    read_generation_config(b'{"novel_sampler": 1, "trained_by": null}', 100)
    assert "not known, and not applied: ['novel_sampler']" in caplog.text


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"a": "\xff"}', b"[" * 100_000, b'{"top_p": "0.9"}', b'{"top_k": -1}']
)
def test_garbage_is_refused(content: bytes) -> None:
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        read_generation_config(content, 100)
