"""A head beside a tied flag: what the files hold, as transformers reads them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.batches import PagedDriver
from support.checkpoints import Checkpoint, model_spec
from transformers import AutoModelForCausalLM

from pagewire.wire.model import ModelSpec
from pagewire.wire.tensors import EMBEDDING, HEAD, WeightsError
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.attention.paged_torch import PagedTorchAttention
from pagewire.worker.model.decoder import Decoder
from pagewire.worker.weights.build import load_decoder

PROMPT = [5, 9, 200, 31, 7, 77, 140, 3]


def load(spec: ModelSpec) -> Decoder:
    return load_decoder(spec, "float32", PagedTorchAttention(), lambda stage, fraction: None)


def logits_of(decoder: Decoder) -> torch.Tensor:
    return PagedDriver(decoder, KVCache(decoder.config, 8, 16, torch.float32)).step({0: PROMPT})[0]


def with_head(checkpoint: Checkpoint, folder: Path, head: torch.Tensor) -> ModelSpec:
    """The tied checkpoint with this head besides, in two shards as large models are, and its config.json."""
    tensors = load_file(checkpoint.spec.weights_files[0])
    files = [folder / f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    save_file(tensors, files[0], metadata={"format": "pt"})
    save_file({HEAD: head.contiguous()}, files[1], metadata={"format": "pt"})
    index = dict.fromkeys(tensors, files[0].name) | {HEAD: files[1].name}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_bytes((checkpoint.directory / "config.json").read_bytes())
    return model_spec(checkpoint.config, "safetensors", tuple(map(str, files)))


@pytest.mark.parametrize("family", ["qwen3-tied", "qwen2"])
@pytest.mark.parametrize("equal", [True, False])
def test_a_head_beside_a_tied_flag(
    checkpoint_of: Callable[[str], Checkpoint],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    family: str,
    equal: bool,
) -> None:
    checkpoint = checkpoint_of(family)
    head = load_file(checkpoint.spec.weights_files[0])[EMBEDDING].clone()
    if not equal:
        head[-1, -1] += 1  # the last value of all
    spec = with_head(checkpoint, tmp_path, head)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert (theirs.lm_head.weight is theirs.model.embed_tokens.weight) == equal
    with torch.inference_mode():
        expected = theirs(torch.tensor([PROMPT])).logits[0, -1]
    decoder = load(spec)
    torch.testing.assert_close(logits_of(decoder), expected, rtol=2e-4, atol=2e-4)
    assert decoder.config.tie_word_embeddings == equal
    assert (f"tensor {HEAD} in {spec.weights_files[1]}" in caplog.text) == (not equal)


def test_a_head_that_rounds_to_the_embedding_is_tied(
    checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    checkpoint = checkpoint_of("qwen3-tied")
    head = load_file(checkpoint.spec.weights_files[0])[EMBEDDING].bfloat16().float()
    spec = with_head(checkpoint, tmp_path, head)
    assert not load(spec).config.tie_word_embeddings
    bfloat16 = load_decoder(spec, "bfloat16", PagedTorchAttention(), lambda stage, fraction: None)
    assert bfloat16.config.tie_word_embeddings


def test_a_head_of_another_shape_is_refused_though_the_flag_says_tied(
    checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    spec = with_head(checkpoint_of("qwen3-tied"), tmp_path, torch.ones(8, 48))
    with pytest.raises(WeightsError, match=r"lm_head\.weight in .* has shape \[8, 48\]; .* says \[256, 48\]"):
        load(spec)


def test_a_head_alone_is_refused_though_the_flag_says_tied(
    checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    tensors = load_file(checkpoint_of("qwen3-tied").spec.weights_files[0])
    tensors[HEAD] = tensors.pop(EMBEDDING)
    save_file(tensors, tmp_path / "m.safetensors")
    spec = model_spec(checkpoint_of("qwen3-tied").config, "safetensors", (str(tmp_path / "m.safetensors"),))
    with pytest.raises(WeightsError, match=r"lacks tensor model\.embed_tokens\.weight"):
        load(spec)
