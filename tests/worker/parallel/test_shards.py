"""Which part of a model a rank holds, and that every source reads that part alone."""

from collections.abc import Mapping
from pathlib import Path

import gguf
import msgspec
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints import TINY, decoder_config, model_spec, save_checkpoint
from support.gguf_files import write_gguf
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from pagewire.wire.model import DecoderConfig, ModelSpec, local_decoder
from pagewire.wire.tensors import decoder_tensors
from pagewire.worker.parallel.shard import Rank, ShardedSource, VocabularyPart
from pagewire.worker.weights.build import open_source
from pagewire.worker.weights.random_source import BLOCK, RandomSource
from pagewire.worker.weights.source import Part, TensorSource

SHAPE = {**TINY, "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 64}


def tiny(**changes: object) -> DecoderConfig:
    config = decoder_config(Qwen3Config(**SHAPE, head_dim=16))
    return msgspec.structs.replace(config, **changes)


def read(source: TensorSource, name: str, part: Part | None = None) -> torch.Tensor:
    shape = list(source.shapes[name])
    if part is not None:
        shape[part.axis] = part.stop - part.start
    out = torch.full(shape, torch.nan)
    source.copy_to(name, out, part)
    return out


class CountingSource:
    """Counts the values that are read from another source."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self.num_values = 0

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._source.shapes

    @property
    def description(self) -> str:
        return self._source.description

    def describe(self, name: str) -> str:
        return self._source.describe(name)

    def copy_to(self, name: str, out: torch.Tensor, part: Part | None = None) -> None:
        self.num_values += out.numel()
        self._source.copy_to(name, out, part)


def qwen3() -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16))


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, head_dim=8, attention_bias=True, mlp_bias=True))


@pytest.fixture(params=["random", "safetensors", "gguf-f32", "gguf-f16", "gguf-q8_0", "gguf-llama"])
def spec(request: pytest.FixtureRequest, tmp_path: Path) -> ModelSpec:
    kind = request.param
    if kind == "random":
        return model_spec(tiny(), "random", random_seed=3)
    if kind == "safetensors":
        return save_checkpoint(llama(), tmp_path, max_shard_size="60KB").spec
    model = llama() if kind == "gguf-llama" else qwen3()
    file = tmp_path / "model.gguf"
    quantized = {"gguf-f16": Kind.F16, "gguf-q8_0": Kind.Q8_0}.get(kind, Kind.F32)
    write_gguf(model, file, quantized)
    return model_spec(decoder_config(model.config), "gguf", (str(file),))


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_ranks_parts_make_the_whole(spec: ModelSpec, world_size: int) -> None:
    source, config = open_source(spec), spec.decoder
    ranks = [ShardedSource(source, config, Rank(number, world_size)) for number in range(world_size)]
    for name in decoder_tensors(config):
        whole = read(source, name)
        parts = [read(rank, name) for rank in ranks]
        *_, module, kind = ("", *name.split("."))
        if module in ("o_proj", "down_proj"):
            joined = torch.cat(parts, dim=1) if kind == "weight" else torch.stack(parts).sum(0)
        elif module in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj") or name.split(".")[-2] in (
            "embed_tokens",
            "lm_head",
        ):
            joined = torch.cat(parts)
        else:
            joined = parts[-1]
        assert torch.equal(joined, whole), name


def test_columns_within_a_quantized_block(tmp_path: Path) -> None:
    """96 columns over 4 ranks: a part begins inside a block of 32 values."""
    model = qwen3()
    file = tmp_path / "model.gguf"
    write_gguf(model, file, Kind.Q8_0)
    source = open_source(model_spec(decoder_config(model.config), "gguf", (str(file),)))
    name = "model.layers.1.mlp.down_proj.weight"
    whole = read(source, name)
    assert whole.shape == (64, 96)
    assert gguf.GGML_QUANT_SIZES[Kind.Q8_0][0] == 32
    for start in range(0, 96, 24):
        assert torch.equal(read(source, name, Part(1, start, start + 24)), whole[:, start : start + 24])


@pytest.fixture(scope="module")
def long_tensors() -> list[tuple[RandomSource, str, torch.Tensor]]:
    """Matrices that are longer than the block of values that they are made of."""
    found = []
    for seed in (0, 2**64 - 1):
        source = RandomSource(tiny(intermediate_size=BLOCK // 20), seed)
        for module in ("up_proj", "down_proj"):
            name = f"model.layers.0.mlp.{module}.weight"
            found.append((source, name, read(source, name)))
    return found


@given(which=st.integers(0, 3), axis=st.integers(0, 1), data=st.data())
def test_any_part_of_a_random_tensor_can_be_made_alone(
    long_tensors: list[tuple[RandomSource, str, torch.Tensor]], which: int, axis: int, data: st.DataObject
) -> None:
    source, name, whole = long_tensors[which]
    bounds = st.integers(0, whole.shape[axis])
    start = data.draw(bounds)
    part = Part(axis, start, min(whole.shape[axis], start + data.draw(st.integers(0, 5000))))
    assert torch.equal(read(source, name, part), whole[part.index])


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_rank_reads_its_part_alone(world_size: int) -> None:
    config = tiny(tie_word_embeddings=False)
    counts = []
    for number in range(world_size):
        whole = CountingSource(RandomSource(config, 0))
        sharded = ShardedSource(whole, config, Rank(number, world_size))
        for name in decoder_tensors(config):
            read(sharded, name)
        counts.append(whole.num_values)
    norms = sum(shape[0] for name, shape in decoder_tensors(config).items() if name.endswith("norm.weight"))
    everything = sum(torch.Size(shape).numel() for shape in decoder_tensors(config).values())
    assert counts == [(everything - norms) // world_size + norms] * world_size


@given(st.integers(1, 1000), st.integers(1, 16))
def test_vocabulary_parts_cover_every_id_once(vocab_size: int, world_size: int) -> None:
    parts = [VocabularyPart.of(vocab_size, Rank(number, world_size)) for number in range(world_size)]
    assert [token for part in parts for token in range(part.start, part.stop)] == list(range(vocab_size))
    assert all(0 <= part.stop - part.start <= part.num_rows == parts[0].num_rows for part in parts)


def test_a_vocabulary_that_does_not_divide_is_padded_with_zeros() -> None:
    config = tiny(vocab_size=255)
    source = RandomSource(config, 0)
    parts = [read(ShardedSource(source, config, Rank(number, 4)), "model.embed_tokens.weight") for number in range(4)]
    assert [len(part) for part in parts] == [64] * 4
    joined = torch.cat(parts)
    assert torch.equal(joined[:255], read(source, "model.embed_tokens.weight"))
    assert torch.equal(joined[255], torch.zeros(64))


def test_the_shape_of_a_rank() -> None:
    local = local_decoder(tiny(), 4)
    assert local == tiny(num_heads=2, num_kv_heads=1, intermediate_size=24)
    assert local_decoder(tiny(), 1) == tiny()


@pytest.mark.parametrize(
    ("num_ranks", "changes", "message"),
    [
        (3, {}, "tensor_parallel_size is 3, which does not divide the model's 8 attention heads; "),
        (8, {}, "tensor_parallel_size is 8, which does not divide the model's 4 KV heads; "),
        (4, {"intermediate_size": 90}, "which does not divide the model's 90 MLP rows (intermediate_size); "),
    ],
)
def test_a_model_that_does_not_divide_is_refused_with_the_numbers(
    num_ranks: int, changes: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=r"this model can run on 1, 2(, 4)? ranks") as error:
        local_decoder(tiny(**changes), num_ranks)
    assert message in str(error.value)
