"""GGUF files: the decoder's shape, the tokenizer's parts, refusals, and the cache of what was read."""

from pathlib import Path

import pytest
from support.models import QUIET
from tokenizers import Tokenizer

from pagewire.scheduler_svc.models.gguf_file import read_gguf
from pagewire.scheduler_svc.startup_errors import ModelError
from pagewire.wire.model import DecoderConfig, ModelSpec, RopeScaling

from .conftest import GgufSource


def read(source: GgufSource, folder: Path) -> ModelSpec:
    return read_gguf(source.write(folder / "m.gguf"), "m", folder / "cache", QUIET)


def tokenizer(spec: ModelSpec) -> Tokenizer:
    assert spec.tokenizer_file is not None
    return Tokenizer.from_file(spec.tokenizer_file)


def test_a_qwen3_file(gguf_source: GgufSource, tmp_path: Path) -> None:
    gguf_source.chat_template = "{{ messages }}"
    spec = read(gguf_source, tmp_path)
    assert spec.decoder == DecoderConfig(
        architecture="qwen3",
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        vocab_size=262,
        max_position_embeddings=512,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        tie_word_embeddings=True,
        qk_norm=True,
        qkv_bias=False,
    )
    assert spec.weights_files == (str(tmp_path / "m.gguf"),)
    assert spec.chat_template == "{{ messages }}"
    assert spec.special_tokens == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    assert spec.eos_token_ids == (257, 256), "<|endoftext|> ends a document, though the file names one end alone"


@pytest.mark.parametrize(("architecture", "tensors"), [("llama", {}), ("qwen2", {"blk.0.attn_q.bias": (128,)})])
def test_other_families(
    gguf_source: GgufSource, tmp_path: Path, architecture: str, tensors: dict[str, tuple[int]]
) -> None:
    gguf_source.architecture = architecture
    gguf_source.tensors = tensors | {"output.weight": (259, 64)}
    for key in ("attention.key_length", "attention.value_length", "rope.freq_base"):
        del gguf_source.numbers[key]
    decoder = read(gguf_source, tmp_path).decoder
    assert (decoder.architecture, decoder.head_dim, decoder.rope_theta) == (architecture, 16, 10000.0)
    assert (decoder.qk_norm, decoder.qkv_bias, decoder.tie_word_embeddings) == (False, architecture == "qwen2", False)


def test_rope_scaling(gguf_source: GgufSource, tmp_path: Path) -> None:
    gguf_source.texts["rope.scaling.type"] = "yarn"
    gguf_source.numbers |= {"rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 128}
    assert read(gguf_source, tmp_path).decoder.rope_scaling == RopeScaling(
        kind="yarn", factor=4.0, original_max_position_embeddings=128
    )


def test_the_tokenizer(gguf_source: GgufSource, tmp_path: Path) -> None:
    spec = read(gguf_source, tmp_path)
    made = tokenizer(spec)
    text = "he\u0301 hello <tool><|im_end|>\n"
    ids = made.encode(text).ids
    assert gguf_source.tokens[ids[-2]] == "<|im_end|>"
    assert "Ġhe" in [gguf_source.tokens[index] for index in ids]
    assert made.decode(ids, skip_special_tokens=False) == "h\u00e9 hello <tool><|im_end|>\n", "Qwen composes (NFC)"
    assert made.decode(ids, skip_special_tokens=True) == "h\u00e9 hello <tool>\n", "a user-defined token is text"


@pytest.mark.parametrize(
    ("pre", "digits"), [("qwen2", 4), ("smollm", 4), ("llama-bpe", 2), ("gpt-2", 1), (None, 1), ("deepseek-r1-qwen", 4)]
)
def test_how_digits_are_cut(gguf_source: GgufSource, tmp_path: Path, pre: str | None, digits: int) -> None:
    gguf_source.pre = pre
    cut = tokenizer(read(gguf_source, tmp_path)).pre_tokenizer.pre_tokenize_str("1234")
    assert len(cut) == digits


@pytest.mark.parametrize(
    ("pre", "says", "added"),
    [("llama-bpe", None, True), ("llama-bpe", False, False), ("qwen2", None, False), ("gpt-2", True, True)],
)
def test_beginning_of_sequence(
    gguf_source: GgufSource, tmp_path: Path, pre: str, says: bool | None, added: bool
) -> None:
    gguf_source.pre, gguf_source.add_bos = pre, says
    gguf_source.ids["bos_token_id"] = 256
    assert read(gguf_source, tmp_path).add_bos == added


def test_a_second_read_comes_from_the_cache_until_the_file_changes(gguf_source: GgufSource, tmp_path: Path) -> None:
    first = read(gguf_source, tmp_path)
    (entry,) = (tmp_path / "cache" / "gguf").iterdir()
    file = tmp_path / "m.gguf"
    stages: list[str] = []

    class Recording:
        def report(self, stage: str, fraction: float) -> None:
            stages.append(stage)

        def close(self) -> None: ...

    assert read_gguf(file, "m", tmp_path / "cache", Recording()) == first
    assert stages == []
    (entry / "tokenizer.json").write_text("{}")
    assert read_gguf(file, "m", tmp_path / "cache", Recording()) == first, "a damaged entry is made again"
    assert stages == ["reading m.gguf"] * 2
    gguf_source.chat_template = "new"
    assert read(gguf_source, tmp_path).chat_template == "new"
    assert len(list((tmp_path / "cache" / "gguf").iterdir())) == 2


def test_refusals(gguf_source: GgufSource, tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(ModelError, match=message):
            read(gguf_source, tmp_path)

    gguf_source.pre = "tekken"
    refused(r"m\.gguf: tokenizer\.ggml\.pre = 'tekken' is not served; gpt-2, default, smollm")
    gguf_source.pre, gguf_source.algorithm = "qwen2", "llama"
    refused(r"tokenizer\.ggml\.model = 'llama' is not served; 'gpt2' is")
    gguf_source.algorithm = "gpt2"
    gguf_source.merges.append("no-space")
    refused("merges holds 'no-space', which is not two parts")
    gguf_source.merges[-1] = "zz qq"
    refused("the tokenizer's merges do not fit its tokens")
    gguf_source.merges.pop()
    gguf_source.types.pop()
    refused("262 tokens and 261 token types")
    gguf_source.types.append(1)
    gguf_source.ids["eos_token_id"] = 262
    refused("= 262 must be 0 to 261")
    gguf_source.ids["eos_token_id"] = 257
    gguf_source.tensors["rope_freqs.weight"] = (16,)
    refused(r"rope_freqs\.weight .* is not served from GGUF")
    del gguf_source.tensors["rope_freqs.weight"]
    gguf_source.numbers["expert_count"] = 8
    refused(r"qwen3\.expert_count = 8 is not served")
    del gguf_source.numbers["expert_count"]
    gguf_source.texts["rope.scaling.type"] = "longrope"
    refused(r"rope\.scaling\.type = 'longrope' is not served")
    gguf_source.texts["rope.scaling.type"] = "yarn"
    refused(r"rope\.scaling\.factor = 0.0 of type 'yarn' must be above 0")
    gguf_source.texts.clear()
    del gguf_source.numbers["block_count"]
    refused(r"qwen3\.block_count = None must be a number")
    gguf_source.architecture = "gemma"
    refused(r"general\.architecture = 'gemma' is not served; llama, qwen2, qwen3 are")


@pytest.mark.parametrize("kept", [0, 3, 4, 20, 100, 2000, 8000])
def test_a_torn_file_is_refused(gguf_source: GgufSource, tmp_path: Path, kept: int) -> None:
    whole = gguf_source.write(tmp_path / "whole.gguf").read_bytes()
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(whole[:kept])
    with pytest.raises(ModelError, match=r"torn\.gguf is not a GGUF file that can be read"):
        read_gguf(torn, "m", tmp_path / "cache", QUIET)
