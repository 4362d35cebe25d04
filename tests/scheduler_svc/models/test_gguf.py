"""GGUF files: the decoder's shape, the tokenizer's parts, refusals, and the cache of what was read."""

import shutil
from pathlib import Path

import gguf
import pytest
from support.model_files import GgufSource
from support.models import QUIET
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import PreTokenizer

from pagewire.scheduler_svc.models.gguf_file import read_gguf
from pagewire.scheduler_svc.models.hf_generation import NARROWEST_TOP_P
from pagewire.scheduler_svc.models.resolve import parse_source, resolve_model
from pagewire.scheduler_svc.startup_errors import ModelError
from pagewire.wire.model import DecoderConfig, ModelSpec, RopeScaling
from pagewire.wire.sampling import SamplingParams


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
    ("pre", "digits"),
    [("qwen2", 4), ("smollm", 4), ("llama-bpe", 2), ("gpt-2", 1), (None, 2), ("default", 2), ("deepseek-r1-qwen", 4)],
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
    made = tokenizer(read(gguf_source, tmp_path))
    assert made.encode("he").ids == [256] * added + made.encode("he", add_special_tokens=False).ids


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


def documented_keys() -> list[str]:
    """Every key of a model that the gguf package names, without the architecture's name."""
    groups = ["LLM", "Attention", "Rope", "SSM", "KDA", "WKV", "PosNet", "ConvNext", "Classifier", "ShortConv"]
    names = [vars(getattr(gguf.Keys, group)) for group in groups if hasattr(gguf.Keys, group)]
    values = [value for group in names for name, value in group.items() if name.isupper()]
    return [value.removeprefix("{arch}.") for value in values if value.startswith("{arch}.")]


def test_no_documented_key_is_left_out_in_silence(
    gguf_source: GgufSource, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another value than usual changes the model, is refused by name, or is named in a warning."""
    usual = read(gguf_source, tmp_path).decoder
    silent = {
        # Whether a model was trained with its scaling; and of what a decoder of this kind does not have.
        *("rope.scaling.finetuned", "decoder_start_token_id", "attention.layer_norm_epsilon"),
        # Of a scaling that nothing else asks for.
        *("rope.scaling.original_context_length", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
    }
    numbers = dict(gguf_source.numbers)
    keys = documented_keys()
    assert len(keys) > 100
    for key in keys:
        gguf_source.numbers = {**numbers, key: 0.5 if isinstance(numbers.get(key), float) else 7}
        caplog.clear()
        try:
            changed = read(gguf_source, tmp_path).decoder != usual
            said = caplog.text
        except ModelError as error:
            changed, said = False, str(error)
        assert changed or key in said or key in silent, (key, said)


@pytest.mark.parametrize(
    ("numbers", "texts", "scaling"),
    [
        ({"rope.scale_linear": 4.0}, {}, RopeScaling(kind="linear", factor=4.0)),
        ({"rope.scaling.factor": 4.0}, {}, RopeScaling(kind="linear", factor=4.0)),
        (
            {"rope.scaling.factor": 4.0, "rope.scale_linear": 2.0},
            {"rope.scaling.type": "linear"},
            RopeScaling(kind="linear", factor=4.0),
        ),
        ({"rope.scaling.factor": 4.0}, {"rope.scaling.type": "none"}, None),
        ({"rope.scale_linear": 1.0}, {}, None),
        ({}, {"rope.scaling.type": "linear"}, None),
        (
            {"rope.scaling.factor": 2.0},
            {"rope.scaling.type": "yarn"},
            RopeScaling(kind="yarn", factor=2.0, original_max_position_embeddings=512),
        ),
    ],
)
def test_rope_scaling_as_llama_cpp_reads_it(
    gguf_source: GgufSource,
    tmp_path: Path,
    numbers: dict[str, float],
    texts: dict[str, str],
    scaling: RopeScaling | None,
) -> None:
    gguf_source.numbers |= numbers
    gguf_source.texts |= texts
    assert read(gguf_source, tmp_path).decoder.rope_scaling == scaling


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention.clamp_kqv", 8.0),
        ("attention.max_alibi_bias", 8.0),
        ("attention.scale", 0.1),
        ("attn_logit_softcapping", 50.0),
        ("logit_scale", 0.0625),
        ("use_parallel_residual", True),
        ("rope.scaling.attn_factor", 1.5),
        ("rope.dimension_count", 16),
        ("attention.value_length", 16),
        ("vocab_size", 300),
        ("embedding_length", 128),
        ("block_count", 10_000_000),
        ("context_length", 2**31),
        ("nextn_predict_layers", 1),
    ],
)
def test_what_changes_the_numbers_is_refused_by_name(
    gguf_source: GgufSource, tmp_path: Path, key: str, value: float
) -> None:
    gguf_source.extra = [(f"qwen3.{key}", value)]
    gguf_source.numbers.pop(key, None)
    if key == "block_count":
        gguf_source.blocks = 2
    with pytest.raises(ModelError, match=rf"qwen3\.{key} = {value}"):
        read(gguf_source, tmp_path)


def test_a_number_for_each_layer(gguf_source: GgufSource, tmp_path: Path) -> None:
    usual = read(gguf_source, tmp_path).decoder
    del gguf_source.numbers["attention.head_count_kv"]
    gguf_source.extra = [("qwen3.attention.head_count_kv", [2, 2])]
    assert read(gguf_source, tmp_path).decoder == usual
    gguf_source.extra = [("qwen3.attention.head_count_kv", [2, 4])]
    with pytest.raises(ModelError, match=r"attention\.head_count_kv = \[2, 4\] differs between layers"):
        read(gguf_source, tmp_path)
    gguf_source.extra = [("qwen3.attention.head_count_kv", [2, 2, 2])]
    with pytest.raises(ModelError, match=r"has 3 entries, which is not block_count"):
        read(gguf_source, tmp_path)


def test_other_kinds_of_file(gguf_source: GgufSource, tmp_path: Path) -> None:
    for key, value in (
        ("general.type", "adapter"),
        ("general.quantization_version", 1),
        ("adapter.type", "lora"),
        ("clip.has_vision_encoder", True),
    ):
        gguf_source.extra = [(key, value)]
        with pytest.raises(ModelError, match=rf"{key} = .* is not served"):
            read(gguf_source, tmp_path)


def test_recommended_sampling(gguf_source: GgufSource, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gguf_source.extra = [
        ("general.sampling.temp", 0.6),
        ("general.sampling.top_k", 20),
        ("general.sampling.top_p", 0.0),
        ("general.sampling.min_p", 0.1),
        ("general.sampling.penalty_repeat", 1.0),
        ("general.sampling.xtc_probability", 0.5),
    ]
    for start in ("first", "from the cache"):
        caplog.clear()
        spec = read_gguf(gguf_source.write(tmp_path / "m.gguf"), "m", tmp_path / "cache", QUIET)
        assert spec.sampling == SamplingParams(temperature=0.6, top_k=20, top_p=NARROWEST_TOP_P, min_p=0.1), start
        assert "general.sampling.xtc_probability = 0.5" in caplog.text, start
        assert "penalty_repeat" not in caplog.text


class TestParts:
    def write(self, source: GgufSource, folder: Path, parts: int = 2) -> list[Path]:
        source.split_max_tensors = -(-(2 + len(source.tensors) + 1) // parts)
        source.write(folder / "m.gguf")
        return sorted(folder.glob("m-*.gguf"))

    def test_a_model_is_served_from_its_parts(self, gguf_source: GgufSource, tmp_path: Path) -> None:
        whole = read(gguf_source, tmp_path)
        parts = self.write(gguf_source, tmp_path)
        assert len(parts) > 1
        (tmp_path / "m.gguf").unlink()  # `whole`
        spec = resolve_model(
            str(tmp_path / "m.gguf"),
            served_name=None,
            weights_needed=True,
            cache_dir=tmp_path / "c",
            environ={},
            progress=QUIET,
        )
        assert spec.name == "m"
        assert spec.weights_files == tuple(map(str, parts))
        assert spec.decoder == whole.decoder
        assert spec.tokenizer_digest == whole.tokenizer_digest
        assert spec.weights_digest != whole.weights_digest

    def test_parts_are_found_beside_links(self, gguf_source: GgufSource, tmp_path: Path) -> None:
        """As the hub's cache lays them out: links with the names, blobs without."""
        (tmp_path / "links").mkdir()
        for number, part in enumerate(self.write(gguf_source, tmp_path)):
            (tmp_path / "links" / part.name).symlink_to(part.rename(tmp_path / f"blob{number}"))
        name = str(tmp_path / "links" / "m.gguf")
        spec = resolve_model(
            name, served_name=None, weights_needed=True, cache_dir=tmp_path / "c", environ={}, progress=QUIET
        )
        assert len(spec.weights_files) > 1

    def test_what_is_wrong_with_parts_is_said(self, gguf_source: GgufSource, tmp_path: Path) -> None:
        parts = self.write(gguf_source, tmp_path)
        count = len(parts)

        def refused(path: Path, words: str) -> None:
            with pytest.raises(ModelError, match=words):
                read_gguf(path, "m", tmp_path / "cache", QUIET)

        refused(parts[1], rf"is one part of several \(split\.no = 1, split\.count = {count}\); all of them must stand")
        alone = shutil.copy(parts[0], tmp_path / "alone.gguf")
        refused(Path(alone), rf"is the first of several parts \(split\.count = {count}\), and its name does not say")
        shutil.copy(parts[0], parts[1])
        refused(parts[0], rf"{parts[1].name}: split\.no = 0 .* its name says 1 \(counted from 0\) and {count}")
        parts[1].unlink()
        refused(parts[0], rf"is one of {count} parts, by its name, and .*{parts[1].name} is missing")

    def test_a_part_is_no_model_and_its_name_says_which_is(self, gguf_source: GgufSource, tmp_path: Path) -> None:
        for part in self.write(gguf_source, tmp_path):
            with pytest.raises(ModelError, match=r"is one part of \d+, by its name; name .*/m\.gguf and"):
                parse_source(str(part))
        shutil.copy(tmp_path / "m-00001-of-00002.gguf", tmp_path / "m-00001-of-00005.gguf")
        with pytest.raises(ModelError, match=r"parts of more than one model beside it: m-00001-of-\d+\.gguf and m-0"):
            parse_source(str(tmp_path / "m.gguf"))
        with pytest.raises(ModelError, match="there is no such file"):
            parse_source(str(tmp_path / "other.gguf"))

    def test_the_tensors_of_all_parts_are_counted(self, gguf_source: GgufSource, tmp_path: Path) -> None:
        parts = self.write(gguf_source, tmp_path)
        key = b"split.tensors.count"
        content = bytearray(parts[0].read_bytes())
        content[content.index(key) + len(key) + 4] += 1
        parts[0].write_bytes(content)
        with pytest.raises(ModelError, match=r"split\.tensors\.count = \d+, and the \d+ parts hold \d+ tensors"):
            read_gguf(parts[0], "m", tmp_path / "cache", QUIET)


def test_the_default_cut(gguf_source: GgufSource, tmp_path: Path) -> None:
    """llama.cpp's four rules, one after the other: punctuation, GPT-2's words, numbers, digits in threes."""
    for pre in (None, "default"):
        gguf_source.pre = pre
        cut = tokenizer(read(gguf_source, tmp_path)).pre_tokenizer

        def pieces(text: str, cut: PreTokenizer = cut) -> list[str]:
            return [piece.replace("Ġ", " ").replace("Ċ", "\n") for piece, _ in cut.pre_tokenize_str(text)]

        assert pieces("a ( 123456") == ["a", " ", "(", " ", "123", "456"]
        assert pieces("it's 12345!? x\n\ny  z") == [
            *["it", "'", "s", " ", "123", "45", "!?", " x", "\n", "\n", "y", " ", " z"]
        ]


def test_ends_that_the_file_asks_for(gguf_source: GgufSource, tmp_path: Path) -> None:
    gguf_source.ids["bos_token_id"] = 256
    gguf_source.values |= {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    made = tokenizer(read(gguf_source, tmp_path))
    assert made.encode("ll").ids == [256, *made.encode("ll", add_special_tokens=False).ids, 257]


def test_kinds_of_tokens(gguf_source: GgufSource, tmp_path: Path) -> None:
    """As in llama.cpp: an unknown token is matched and has no text, an unused one is nothing."""
    gguf_source.tokens += ["<unk>", "[PAD263]", "<added>"]
    gguf_source.types += [2, 5, 1]
    gguf_source.values["tokenizer.ggml.added_tokens"] = ["<added>", "<tool>"]
    gguf_source.ids |= {"unknown_token_id": 262, "cls_token_id": 256, "separator_token_id": 257, "mask_token_id": 258}
    spec = read(gguf_source, tmp_path)
    made = tokenizer(spec)
    assert made.encode("<unk><added>", add_special_tokens=False).ids == [262, 264]
    assert made.decode([262, 263, 264]) == "<added>"
    assert made.decode([262, 263], skip_special_tokens=False) == "<unk>"
    assert spec.special_tokens == {
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<unk>",
        "sep_token": "<|im_end|>",
        "cls_token": "<|endoftext|>",
        "mask_token": "<tool>",
    }


def test_named_templates(gguf_source: GgufSource, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gguf_source.values |= {
        "tokenizer.chat_template": "plain",
        "tokenizer.chat_templates": ["tool_use", "rag"],
        "tokenizer.chat_template.tool_use": "tools",
        "tokenizer.chat_template.rag": "other",
    }
    spec = read(gguf_source, tmp_path)
    assert (spec.chat_template, spec.tool_use_template) == ("plain", "tools")
    assert "chat templates rag are not used" in caplog.text
    del gguf_source.values["tokenizer.chat_template.rag"]
    with pytest.raises(ModelError, match=r"tokenizer\.chat_templates names 'rag', but .*\.rag is missing"):
        read(gguf_source, tmp_path)


def test_keys_without_effect_are_said(
    gguf_source: GgufSource, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gguf_source.values |= {"tokenizer.ggml.add_space_prefix": True, "tokenizer.huggingface.json": "{}"}
    read(gguf_source, tmp_path)
    assert "tokenizer.ggml.add_space_prefix, tokenizer.huggingface.json: without effect" in caplog.text


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.add_sep_token", True, r"tokenizer\.ggml\.add_sep_token = True is not served"),
        ("tokenizer.ggml.added_tokens", ["<x>"], r"added_tokens has '<x>', which tokenizer\.ggml\.tokens lacks"),
        ("tokenizer.ggml.added_tokens", [5], r"tokenizer\.ggml\.tokens, .* or added_tokens: Expected `str`"),
        ("tokenizer.chat_template", 5, r"tokenizer\.chat_template or tokenizer\.chat_templates: Expected `str"),
        ("tokenizer.chat_templates", 5, r"tokenizer\.chat_template or tokenizer\.chat_templates: Expected `array`"),
        ("tokenizer.chat_template.x", 5, r"tokenizer\.chat_template or tokenizer\.chat_templates: Expected `str`"),
        ("tokenizer.ggml.add_bos_token", "yes", r"tokenizer\.ggml\.add_bos_token = 'yes' must be true or false"),
        ("tokenizer.ggml.pre", ["a"], r"tokenizer\.ggml\.pre = \['a'\] is not served"),
    ],
)
def test_tokenizer_keys_that_are_refused(
    gguf_source: GgufSource, tmp_path: Path, key: str, value: object, message: str
) -> None:
    gguf_source.pre = None
    gguf_source.values[key] = value
    with pytest.raises(ModelError, match=message):
        read(gguf_source, tmp_path)
