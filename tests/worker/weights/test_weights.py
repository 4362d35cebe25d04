"""Loading from safetensors and from a seed: what is read, and what is refused with which words."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.batches import PagedDriver
from support.checkpoints import Checkpoint, build_hf_model, decoder_config, model_spec, save_checkpoint

from pagewire.wire.model import DecoderConfig, ModelSpec
from pagewire.wire.tensors import WeightsError
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.attention.paged_torch import PagedTorchAttention
from pagewire.worker.model.decoder import Decoder
from pagewire.worker.weights.build import load_decoder
from pagewire.worker.weights.random_source import BLOCK, RandomSource

PROMPT = [5, 9, 200, 31, 7, 77, 140, 3]


def load(spec: ModelSpec, dtype: str = "float32") -> Decoder:
    return load_decoder(spec, dtype, PagedTorchAttention(), lambda stage, fraction: None)


def logits_of(decoder: Decoder, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return PagedDriver(decoder, KVCache(decoder.config, 8, 16, dtype)).step({0: PROMPT})[0]


def rewritten(checkpoint: Checkpoint, directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> ModelSpec:
    """The checkpoint with its tensors changed."""
    tensors = load_file(checkpoint.spec.weights_files[0])
    change(tensors)
    file = directory / "model.safetensors"
    save_file(tensors, file)
    return model_spec(checkpoint.config, "safetensors", (str(file),))


def test_shards_load_like_one_file(tmp_path: Path) -> None:
    model = build_hf_model("qwen3-untied")
    whole = save_checkpoint(model, tmp_path / "whole")
    sharded = save_checkpoint(model, tmp_path / "sharded", max_shard_size="60KB")
    assert len(whole.spec.weights_files) == 1
    assert len(sharded.spec.weights_files) > 3
    assert torch.equal(logits_of(load(whole.spec)), logits_of(load(sharded.spec)))


def test_bf16_is_close_to_fp32(checkpoint: Checkpoint, decoder_of: Callable[[Checkpoint], Decoder]) -> None:
    exact = logits_of(decoder_of(checkpoint))
    rounded = logits_of(load(checkpoint.spec, "bfloat16"), torch.bfloat16).float()
    assert (rounded - exact).norm() / exact.norm() < 0.05


def test_progress_rises_to_one_and_bytes_are_counted(checkpoint_of: Callable[[str], Checkpoint]) -> None:
    checkpoint = checkpoint_of("qwen2")
    seen: list[tuple[str, float]] = []
    decoder = load_decoder(
        checkpoint.spec, "float32", PagedTorchAttention(), lambda stage, fraction: seen.append((stage, fraction))
    )
    assert {stage for stage, _ in seen} == {"weights"}
    fractions = [fraction for _, fraction in seen]
    assert fractions == sorted(set(fractions))
    assert len(fractions) == 4
    assert fractions[-1] == 1.0
    parameters = sum(p.numel() for p in checkpoint.hf_model.parameters())
    tied_copy = checkpoint.hf_model.lm_head.weight.numel()
    assert decoder.weights_bytes == 4 * (parameters + tied_copy)
    assert decoder.linear_backend in ("onednn-packed", "torch")


def test_a_tied_checkpoint_may_carry_its_head_and_saved_frequencies(
    checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    checkpoint = checkpoint_of("qwen3-tied")

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)

    assert torch.equal(logits_of(load(rewritten(checkpoint, tmp_path, change))), logits_of(load(checkpoint.spec)))


def test_a_missing_tensor_is_named_with_the_file(checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    spec = rewritten(checkpoint_of("llama"), tmp_path, lambda t: t.__delitem__("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(WeightsError, match=r"model\.safetensors lacks tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        load(spec)


def test_many_missing_tensors_are_counted(checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    checkpoint = checkpoint_of("llama")
    spec = rewritten(checkpoint, tmp_path, lambda t: None)
    longer = msgspec.structs.replace(spec, decoder=msgspec.structs.replace(spec.decoder, num_layers=4))
    with pytest.raises(WeightsError, match=r"lacks tensors model\.layers\.3\.input_layernorm\.weight, .* and 4 more"):
        load(longer)


def test_an_unexpected_tensor_is_named_with_the_file(
    checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    """For instance q and k norms that a wrong configuration would leave out without a word."""
    spec = rewritten(
        checkpoint_of("llama"), tmp_path, lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(8)})
    )
    with pytest.raises(WeightsError, match=r"unexpected tensor model\.layers\.0\.self_attn\.q_norm\.weight in "):
        load(spec)


def test_a_wrong_shape_is_given_with_both_shapes(checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    spec = rewritten(
        checkpoint_of("llama"),
        tmp_path,
        lambda t: t.update({"model.layers.2.mlp.down_proj.weight": torch.ones(48, 95)}),
    )
    with pytest.raises(
        WeightsError,
        match=r"tensor model\.layers\.2\.mlp\.down_proj\.weight in .* has shape \[48, 95\]; .* says \[48, 96\]",
    ):
        load(spec)


def test_a_quantized_type_is_refused(checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    spec = rewritten(checkpoint_of("llama"), tmp_path, lambda t: t.update({name: t[name].to(torch.float8_e4m3fn)}))
    with pytest.raises(WeightsError, match=rf"tensor {name} in .* has type F8_E4M3; supported are BF16, F16, F32, F64"):
        load(spec)


def test_a_tensor_in_two_shards_is_refused(checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    checkpoint = checkpoint_of("llama")
    copy = rewritten(checkpoint, tmp_path, lambda t: None)
    both = model_spec(checkpoint.config, "safetensors", (*checkpoint.spec.weights_files, *copy.weights_files))
    with pytest.raises(WeightsError, match=r"is in both .* and "):
        load(both)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x10\x00\x00\x00\x00\x00\x00\x00{not json______"])
def test_a_broken_file_is_refused(checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.safetensors"
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=r"cannot read .*broken\.safetensors"):
        load(model_spec(checkpoint_of("llama").config, "safetensors", (str(file),)))


def test_a_file_that_is_not_there_is_refused(checkpoint_of: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"cannot read .*nowhere\.safetensors"):
        load(model_spec(checkpoint_of("llama").config, "safetensors", (str(tmp_path / "nowhere.safetensors"),)))


def random_config() -> DecoderConfig:
    """Wide enough for the families' initializer range to make layers speak."""
    config = decoder_config(build_hf_model("qwen3-tied").config)
    return msgspec.structs.replace(config, hidden_size=256, intermediate_size=512, vocab_size=4096, head_dim=64)


def test_random_weights_depend_on_seed_and_name_alone() -> None:
    config = random_config()
    name = "model.layers.1.mlp.down_proj.weight"
    out = [torch.empty(256, 512) for _ in range(3)]
    RandomSource(config, 1).copy_to(name, out[0])
    again = RandomSource(config, 1)
    again.copy_to("model.layers.0.mlp.down_proj.weight", out[2])
    again.copy_to(name, out[1])
    assert torch.equal(out[0], out[1])
    assert not torch.equal(out[0], out[2])
    RandomSource(config, 2).copy_to(name, out[2])
    assert not torch.equal(out[0], out[2])
    assert out[0].std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(out[0].mean().item()) < 0.001


def test_a_random_tensor_larger_than_the_block_has_no_equal_rows() -> None:
    config = msgspec.structs.replace(random_config(), vocab_size=BLOCK // 256 * 2 + 40)
    embedding = torch.empty(config.vocab_size, 256, dtype=torch.bfloat16)
    RandomSource(config, 0).copy_to("model.embed_tokens.weight", embedding)
    assert len(torch.unique(embedding.view(torch.int16), dim=0)) == config.vocab_size


def test_random_weights_of_a_model_give_varied_text() -> None:
    """Drawn from the model's distribution, no token comes back often; and the most likely one depends on the prompt."""
    decoder = load(model_spec(random_config(), "random", random_seed=3))
    kv = KVCache(decoder.config, 64, 16, torch.float32)
    driver = PagedDriver(decoder, kv)
    generator = torch.Generator().manual_seed(0)
    tokens = list(PROMPT)
    logits = driver.step({0: PROMPT})
    while len(tokens) < 56:
        tokens.append(int(torch.multinomial(logits[0].softmax(-1), 1, generator=generator)))
        logits = driver.step({0: tokens[-1:]})
    assert len(set(tokens)) > 50
    likely = {int(driver.step({seq: [seq * 97 + i for i in range(6)]}).argmax()) for seq in range(1, 13)}
    assert len(likely) > 6
