"""Rotary frequencies against transformers' own, to the last bit, and the rotation against its formula."""

from collections.abc import Callable

import pytest
import torch
from support.checkpoints import Checkpoint, build_hf_model, decoder_config

from pagewire.wire.model import DecoderConfig, RopeScaling
from pagewire.worker.model.rope import rotary_embedding


def config_with(scaling: RopeScaling | None, head_dim: int = 16) -> DecoderConfig:
    config = decoder_config(build_hf_model("llama").config)
    fields = {name: getattr(config, name) for name in config.__struct_fields__}
    return DecoderConfig(**{**fields, "rope_scaling": scaling, "head_dim": head_dim})


def test_cos_and_sin_are_those_of_transformers_bit_for_bit(checkpoint: Checkpoint) -> None:
    positions = torch.tensor([0, 1, 2, 63, 64, 65, 300, 511])
    cos, sin = checkpoint.hf_model.model.rotary_emb(torch.zeros(1), positions[None])
    rotation = rotary_embedding(checkpoint.config).at(positions, torch.float32)
    half = checkpoint.config.head_dim // 2
    assert torch.equal(rotation.cos[:, 0, 0], cos[0, :, :half])
    assert torch.equal(rotation.sin[:, 0, 1], sin[0, :, :half])
    assert torch.equal(rotation.sin[:, 0, 0], -sin[0, :, :half])


def test_rotation_turns_each_pair_by_its_angle(checkpoint_of: Callable[[str], Checkpoint]) -> None:
    config = checkpoint_of("llama").config
    x = torch.randn(5, 3, config.head_dim)
    first, second = x.double().chunk(2, dim=-1)
    inv_freq = config.rope_theta ** -(torch.arange(0, config.head_dim, 2).double() / config.head_dim)
    positions = torch.tensor([0, 1, 10, 100, 500])
    angle = (positions[:, None] * inv_freq)[:, None]
    expected = torch.cat((first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()), -1)
    rotary_embedding(config).at(positions, torch.float32).apply_(x)
    torch.testing.assert_close(x, expected.float(), rtol=1e-4, atol=1e-4)


def test_a_files_own_factors_divide_the_frequencies() -> None:
    factors = torch.linspace(1.0, 8.0, 8)
    plain = rotary_embedding(config_with(None)).at(torch.tensor([8]), torch.float32)
    divided = rotary_embedding(config_with(None), factors).at(torch.tensor([64]), torch.float32)
    # 64 / 8 turns the last pair as far as position 8 does without factors; the first pair is not divided.
    torch.testing.assert_close(divided.cos[..., -1], plain.cos[..., -1])
    assert divided.cos[..., 0].item() == pytest.approx(torch.tensor(64.0).cos().item(), abs=1e-5)


@pytest.mark.parametrize("missing", ["low_freq_factor", "high_freq_factor", "original_max_position_embeddings"])
def test_a_scaling_without_a_field_it_needs_is_refused(missing: str) -> None:
    fields = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    del fields[missing]
    with pytest.raises(ValueError, match=f"rope_scaling.{missing} is missing and llama3 needs it"):
        rotary_embedding(config_with(RopeScaling(kind="llama3", factor=8.0, **fields)))


def test_yarn_cannot_be_combined_with_a_files_own_factors() -> None:
    scaling = RopeScaling(kind="yarn", factor=4.0, original_max_position_embeddings=64)
    with pytest.raises(ValueError, match="'yarn' cannot be combined"):
        rotary_embedding(config_with(scaling), torch.ones(8))
