"""GGUF files: against transformers' own reading of them, and what is refused with which words."""

import contextlib
import struct
from pathlib import Path

import gguf
import msgspec
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.batches import PagedDriver, greedy
from support.checkpoints import TINY, build_hf_model, decoder_config, model_spec
from support.gguf_files import write_gguf
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pagewire.wire.gguf_header import GgufFormatError, read_header
from pagewire.wire.model import DecoderConfig
from pagewire.wire.tensors import WeightsError, check_tensors
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.attention.paged_torch import PagedTorchAttention
from pagewire.worker.model.decoder import Decoder
from pagewire.worker.weights.build import load_decoder
from pagewire.worker.weights.gguf_source import GgufSource

PROMPT = [5, 9, 100, 31, 7, 77, 60, 3]
WIDE = {**TINY, "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "vocab_size": 128}


def load(file: Path, config: DecoderConfig) -> Decoder:
    spec = model_spec(config, "gguf", (str(file),))
    return load_decoder(spec, "float32", PagedTorchAttention(), lambda stage, fraction: None)


def greedy_of(decoder: Decoder, prompt: list[int], num_tokens: int) -> list[int]:
    kv = KVCache(decoder.config, 8, 32, torch.float32)
    return greedy(PagedDriver(decoder, kv), 0, prompt, num_tokens)


def hf_greedy(model: PreTrainedModel, prompt: list[int], num_tokens: int) -> list[int]:
    output = model.generate(
        torch.tensor([prompt]), max_new_tokens=num_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens


@pytest.fixture(scope="module")
def wide_models() -> dict[str, PreTrainedModel]:
    """Rows of 256 values, which every type's blocks divide. One of each order of q and k. Qwen3 has heads of 128,
    because transformers does not read their size from a file."""
    torch.manual_seed(1)
    models = {
        "llama": LlamaForCausalLM(LlamaConfig(**WIDE)),
        "qwen3": Qwen3ForCausalLM(Qwen3Config(**WIDE, head_dim=128, tie_word_embeddings=True)),
    }
    for model in models.values():
        model.eval()
    return models


@pytest.mark.parametrize("family", ["llama", "llama-biases", "mistral", "qwen2", "qwen3-tied", "qwen3-untied"])
def test_a_file_without_quantization_is_the_model_it_was_written_from(family: str, tmp_path: Path) -> None:
    model = build_hf_model(family)
    write_gguf(model, tmp_path / "m.gguf")
    config = decoder_config(model.config)
    assert greedy_of(load(tmp_path / "m.gguf", config), PROMPT, 64) == hf_greedy(model, PROMPT, 64)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1])
def test_quantized_files_generate_what_transformers_generates_from_them(
    wide_models: dict[str, PreTrainedModel], family: str, kind: Kind, tmp_path: Path
) -> None:
    write_gguf(wide_models[family], tmp_path / "m.gguf", kind)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    ours = load(tmp_path / "m.gguf", decoder_config(wide_models[family].config))
    assert greedy_of(ours, PROMPT, 64) == hf_greedy(theirs, PROMPT, 64)


def random_blocks(kind: Kind, shape: tuple[int, ...], scale_fields: tuple[int, ...]) -> np.ndarray:
    """Random bytes in blocks of the type, its fp16 scales (at these bytes of a block) made small and finite."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (shape[0] * shape[1] // values, size), dtype=np.uint8)
    for field in scale_fields:
        scales = rng.uniform(0.001, 0.01, len(blocks)).astype(np.float16)
        blocks[:, field : field + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(shape[0], -1)


@pytest.mark.parametrize(("kind", "scale_fields"), [(Kind.Q4_K, (0, 2)), (Kind.Q5_K, (0, 2)), (Kind.Q6_K, (208,))])
def test_k_quants_are_read_as_the_package_decodes_them(
    wide_models: dict[str, PreTrainedModel], kind: Kind, scale_fields: tuple[int, ...], tmp_path: Path
) -> None:
    """The package cannot quantize to these, so blocks are made up."""
    model = wide_models["qwen3"]
    file = tmp_path / "m.gguf"
    write_gguf(model, file, kind, encode=lambda values: random_blocks(kind, values.shape, scale_fields))
    source = GgufSource([str(file)], decoder_config(model.config))
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight"):
        shape = source.shapes[name]
        out = torch.empty(shape)
        source.copy_to(name, out)
        expected = gguf.dequantize(random_blocks(kind, shape, scale_fields), kind)
        assert np.array_equal(out.numpy(), expected)
    load(file, decoder_config(model.config))


def test_rope_factors_in_the_file_are_applied(wide_models: dict[str, PreTrainedModel], tmp_path: Path) -> None:
    """As Llama 3.1's files carry them: dividing all frequencies by 4 is linear scaling by 4."""
    model = wide_models["llama"]
    file = tmp_path / "m.gguf"
    write_gguf(model, file, extra={"rope_freqs.weight": np.full(16, 4.0, np.float32)})
    linear = LlamaConfig(**WIDE, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0})
    scaled = LlamaForCausalLM(linear).eval()
    scaled.load_state_dict(model.state_dict())
    ours = greedy_of(load(file, decoder_config(model.config)), PROMPT, 32)
    assert ours == hf_greedy(scaled, PROMPT, 32)
    assert ours != hf_greedy(model, PROMPT, 32)


def test_metadata_is_stepped_over(tmp_path: Path) -> None:
    model = build_hf_model("llama")
    write_gguf(model, tmp_path / "m.gguf", num_tokens=300)
    ours = {tensor.name: tensor for tensor in read_header(tmp_path / "m.gguf", with_values=False).tensors}
    theirs = gguf.GGUFReader(tmp_path / "m.gguf").tensors
    assert list(ours) == [tensor.name for tensor in theirs]
    for tensor in theirs:
        assert ours[tensor.name].offset == tensor.data_offset
        assert ours[tensor.name].shape == tuple(reversed(tensor.shape.tolist()))
        assert ours[tensor.name].type_id == tensor.tensor_type


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, DecoderConfig]:
    file = tmp_path_factory.mktemp("tiny") / "m.gguf"
    model = build_hf_model("llama")
    write_gguf(model, file, num_tokens=5)
    return file.read_bytes(), decoder_config(model.config)


def test_an_unknown_type_is_named_with_its_tensor(tiny_file: tuple[bytes, DecoderConfig], tmp_path: Path) -> None:
    content, config = tiny_file
    name = b"blk.1.ffn_up.weight"
    at = content.index(name) + len(name) + 4 + 2 * 8  # number of dimensions, two of them, then the type
    file = tmp_path / "m.gguf"
    file.write_bytes(content[:at] + struct.pack("<I", 99) + content[at + 4 :])
    with pytest.raises(WeightsError, match=r"tensor blk\.1\.ffn_up\.weight in .* has type number 99: not supported"):
        load(file, config)


def test_a_type_that_the_package_cannot_decode_is_named(tmp_path: Path) -> None:
    model = build_hf_model("llama")
    file = tmp_path / "m.gguf"
    write_gguf(model, file, Kind.I8, encode=lambda values: values.astype(np.int8))
    with pytest.raises(WeightsError, match=r"tensor token_embd\.weight in .* has type I8: not supported"):
        load(file, decoder_config(model.config))


def test_a_truncated_file_is_refused(tiny_file: tuple[bytes, DecoderConfig], tmp_path: Path) -> None:
    content, config = tiny_file
    file = tmp_path / "m.gguf"
    file.write_bytes(content[:-64])
    with pytest.raises(WeightsError, match=r"ends past the end of the file"):
        load(file, config)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot"),
        (b"GGML" + bytes(60), "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(60), "version 1 is not supported"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "tensor_count has a count of"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 63) + bytes(8), "a key after the header has"),
    ],
)
def test_what_is_no_gguf_file_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=words):
        load(file, decoder_config(build_hf_model("llama").config))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_directory_is_read_or_refused_and_nothing_else(
    tiny_file: tuple[bytes, DecoderConfig], tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(tiny_file[0][:4000])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    with contextlib.suppress(GgufFormatError):
        read_header(file)


@pytest.mark.parametrize("family", ["llama", "qwen3-tied"])
def test_parts_load_like_one_file(family: str, tmp_path: Path) -> None:
    model = build_hf_model(family)
    write_gguf(model, tmp_path / "m.gguf", split_max_tensors=7)
    parts = sorted(map(str, tmp_path.glob("m-*.gguf")))
    assert len(parts) > 3
    config = decoder_config(model.config)
    spec = model_spec(config, "gguf", tuple(parts))
    decoder = load_decoder(spec, "float32", PagedTorchAttention(), lambda stage, fraction: None)
    assert greedy_of(decoder, PROMPT, 64) == hf_greedy(model, PROMPT, 64)
    with pytest.raises(WeightsError, match=r"m-00001-of-0000.\.gguf.* lacks tensor"):
        check_tensors(GgufSource(parts[:-1], config), config)
    with pytest.raises(WeightsError, match=r"is in .*m-00001-of-0000.\.gguf too"):
        GgufSource([*parts, parts[0]], config)


def test_layers_without_end_are_refused_before_anything_is_made_of_them(
    tiny_file: tuple[bytes, DecoderConfig], tmp_path: Path
) -> None:
    content, config = tiny_file
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=r"m\.gguf has \d+ tensors, too few for the configuration's 10000000 layers"):
        load(file, msgspec.structs.replace(config, num_layers=10_000_000))


def test_left_over_and_missing_tensors_are_named_as_in_the_file(tmp_path: Path) -> None:
    model = build_hf_model("llama")
    file = tmp_path / "m.gguf"
    write_gguf(model, file, extra={"blk.0.attn_gate.weight": np.ones((4, 4), np.float32)})
    config = decoder_config(model.config)
    with pytest.raises(WeightsError, match=r"unexpected tensor blk\.0\.attn_gate\.weight in .*m\.gguf"):
        load(file, config)
    with pytest.raises(WeightsError, match=r"model\.layers\.0\.self_attn\.q_norm\.weight"):
        load(file, msgspec.structs.replace(config, qk_norm=True))
