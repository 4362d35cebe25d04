"""Tokenizer files of Hugging Face directories, judged by transformers' AutoTokenizer: ids, what is special, text."""

import asyncio
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.model_files import TINY_QWEN3, HfDirectory, byte_tokens
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from pagewire.scheduler_svc.frontend.text.tokenizer import TextTokenizer
from pagewire.scheduler_svc.models.hf_directory import read_directory
from pagewire.scheduler_svc.startup_errors import ModelError
from pagewire.wire.model import ModelSpec

transformers = pytest.importorskip("transformers")

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
}
CONFIGS = {
    "llama": LLAMA,
    "mistral": LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None},
    "qwen2": LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "qwen3": TINY_QWEN3 | {"vocab_size": 1000},
}

TEXTS = [
    "hello world",
    " hello  world ",
    "<|im_start|>user\nhello<|im_end|>\n world",
    "<s>hello</s> world <s> hello",
    "<tool>12345 it's\r\n\n x</tool><|image|>  [INST] hello [/INST]",
    "e\u0301 été 你好 🙂 <|endoftext|>",
    "",
]


def byte_level(*added: AddedToken, digits: bool = False) -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(byte_tokens())}
    merges = [("h", "e"), ("l", "l"), ("Ġ", "he"), ("Ġ", "Ġ"), ("1", "2"), ("Ċ", "Ċ")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), whole]) if digits else whole
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(list(added))
    return tokenizer


def sentence_piece(*added: AddedToken, metaspace: bool = False) -> Tokenizer:
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for character in "▁abcdefghijklmnopqrstuvwxyz[]<>|/_0123456789INST'":
        vocabulary[character] = len(vocabulary)
    merges = [("h", "e"), ("l", "l"), ("▁", "he"), ("▁", "▁"), ("he", "ll")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in ("<unk>", "<s>", "</s>")]
    )
    tokenizer.add_tokens(list(added))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def token(text: str, **flags: bool) -> dict[str, Any]:
    return {
        "content": text,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    } | flags


FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
Case = tuple[str, Callable[[], Tokenizer], dict[str, dict[str, Any]]]
CASES: dict[str, Case] = {
    "nothing but tokenizer.json": ("llama", byte_level, {}),
    "added_tokens_decoder": (
        "llama",
        byte_level,
        {
            "tokenizer_config": FAST
            | {
                "added_tokens_decoder": {
                    "262": token("<|im_start|>"),
                    "263": token("<|im_end|>"),
                    "264": token("<tool>", special=False, lstrip=True),
                },
                "eos_token": "<|im_end|>",
            }
        },
    ),
    "added_tokens_decoder with other ids, against the map": (
        "llama",
        lambda: byte_level(AddedToken("<|im_start|>", special=False)),
        {
            "tokenizer_config": FAST
            | {"added_tokens_decoder": {"270": token("<|im_start|>"), "280": token("<|im_end|>")}, "eos_token": "</s>"},
            "special_tokens_map": {"eos_token": "<|im_end|>"},
            "added_tokens": {"<tool>": 264},
        },
    ),
    "added_tokens.json": (
        "llama",
        byte_level,
        {
            "tokenizer_config": FAST | {"eos_token": "<|im_end|>"},
            "added_tokens": {"<|im_end|>": 263, "<|im_start|>": 262},
        },
    ),
    "special_tokens_map.json over tokenizer_config.json": (
        "llama",
        lambda: byte_level(AddedToken("<|im_end|>", special=True), AddedToken("</s>", special=True)),
        {
            "tokenizer_config": FAST | {"eos_token": "</s>", "pad_token": None},
            "special_tokens_map": {"eos_token": token("<|im_end|>"), "bos_token": "<s>"},
        },
    ),
    "a named token that tokenizer.json calls plain": (
        "llama",
        lambda: byte_level(AddedToken("<|im_end|>", special=False), AddedToken("<tool>", special=False)),
        {"tokenizer_config": FAST | {"eos_token": "<|im_end|>"}},
    ),
    "named tokens that stand nowhere else": (
        "llama",
        byte_level,
        {
            "tokenizer_config": FAST
            | {
                "eos_token": "<|im_end|>",
                "pad_token": {"__type": "AddedToken"} | token("<|endoftext|>", rstrip=True),
                "additional_special_tokens": ["<tool>", "</tool>"],
                "image_token": "<|image|>",
                "add_prefix_space": True,
            }
        },
    ),
    "a named token that is an ordinary one": (
        "llama",
        byte_level,
        {"tokenizer_config": FAST | {"eos_token": "Ġhe", "extra_special_tokens": {"image_token": "<|image|>"}}},
    ),
    "extra_special_tokens as a list": (
        "qwen3",
        byte_level,
        {"tokenizer_config": FAST | {"extra_special_tokens": ["<|image|>", "<tool>"], "split_special_tokens": True}},
    ),
    "qwen3's own class": ("qwen3", byte_level, {}),
    "qwen2 has its class whatever the file says": (
        "qwen2",
        lambda: byte_level(AddedToken("<|endoftext|>", special=True)),
        {"tokenizer_config": FAST | {"eos_token": "<|endoftext|>", "add_prefix_space": True}},
    ),
    "qwen2's class with added_tokens_decoder": (
        "qwen3",
        lambda: byte_level(AddedToken("<|endoftext|>"), AddedToken("<|im_end|>", special=True)),
        {
            "tokenizer_config": {
                "tokenizer_class": "Qwen2Tokenizer",
                "added_tokens_decoder": {"262": token("<|endoftext|>"), "263": token("<|im_end|>", special=False)},
                "additional_special_tokens": ["<|im_end|>"],
                "eos_token": "<|endoftext|>",
                "pad_token": "<|endoftext|>",
                "bos_token": None,
                "unk_token": None,
                "errors": "replace",
                "clean_up_tokenization_spaces": True,
            }
        },
    ),
    "gpt2's class": (
        "llama",
        lambda: byte_level(AddedToken("<|endoftext|>", special=True), digits=True),
        {"tokenizer_config": {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True, "vocab_size": 300}},
    ),
    "sentencepiece": (
        "llama",
        sentence_piece,
        {"tokenizer_config": FAST | {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}},
    ),
    "an added token that is matched behind the normalizer": (
        "mistral",
        lambda: sentence_piece(AddedToken("<tool>", normalized=True), AddedToken("</tool>", normalized=True)),
        {},
    ),
    "mistral takes tokenizer.json as it is": (
        "mistral",
        lambda: sentence_piece(AddedToken("[INST]", special=True, normalized=False)),
        {"tokenizer_config": {"tokenizer_class": "LlamaTokenizer", "legacy": False, "bos_token": "<s>"}},
    ),
    "llama's class with bytes": (
        "llama",
        byte_level,
        {"tokenizer_config": {"tokenizer_class": "LlamaTokenizerFast", "eos_token": "<|im_end|>"}},
    ),
}
for legacy in (None, True, False):
    for prefix in (None, True, False):
        keys = {"legacy": legacy, "add_prefix_space": prefix}
        said = {key: value for key, value in keys.items() if value is not None}
        CASES[f"llama's class, {said}"] = (
            "llama",
            lambda metaspace=prefix is True: sentence_piece(AddedToken("[INST]", special=False), metaspace=metaspace),
            {"tokenizer_config": {"tokenizer_class": "LlamaTokenizer"} | said},
        )


def write(folder: HfDirectory, case: Case) -> None:
    family, build, files = case
    folder.write("config.json", CONFIGS[family])
    build().save(str(folder.path / "tokenizer.json"))
    (folder.path / "tokenizer_config.json").unlink()
    for name, content in files.items():
        folder.write(f"{name}.json", content)


def read(folder: HfDirectory) -> ModelSpec:
    return read_directory(folder.path, "m", weights_needed=False, cache_dir=folder.path.parent / "cache")


@pytest.mark.parametrize("name", CASES)
def test_ids_and_text_are_those_of_transformers(hf_directory: HfDirectory, name: str) -> None:
    write(hf_directory, CASES[name])
    spec = read(hf_directory)
    theirs = transformers.AutoTokenizer.from_pretrained(hf_directory.path)
    assert spec.special_tokens == theirs.special_tokens_map
    assert spec.tokenizer_file is not None
    assert Tokenizer.from_file(spec.tokenizer_file).get_vocab() == theirs.get_vocab()

    async def test(ours: TextTokenizer) -> None:
        for text in TEXTS:
            for with_special in (True, False):
                ids = theirs(text, add_special_tokens=with_special)["input_ids"]
                assert await ours.encode(text, add_special_tokens=with_special) == ids, text
                for skip in (True, False):
                    expected = theirs.decode(ids, skip_special_tokens=skip)
                    assert await ours.decode(ids, skip_special_tokens=skip) == expected, text
        for index in range(len(theirs)):
            # Behind a text, where nothing is taken off its start.
            ids = [*theirs("x", add_special_tokens=False)["input_ids"], index]
            for skip in (True, False):
                assert await ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)

    with ThreadPoolExecutor(1) as threads:
        asyncio.run(test(TextTokenizer(spec.tokenizer_file, spec, threads)))


def test_files_that_say_nothing_more_are_served_as_they_are(
    hf_directory: HfDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    hf_directory.tokenizer_config(eos_token="<|im_end|>", add_bos_token=False, model_max_length=10**30)
    spec = read(hf_directory)
    assert spec.tokenizer_file == str(hf_directory.path / "tokenizer.json")
    assert not (hf_directory.path.parent / "cache").exists()
    assert caplog.text == ""


def test_a_made_tokenizer_has_a_digest_of_its_own(hf_directory: HfDirectory) -> None:
    plain = read(hf_directory)
    hf_directory.tokenizer_config(eos_token="<|new|>")
    made = read(hf_directory)
    assert made.tokenizer_digest != plain.tokenizer_digest
    assert made.tokenizer_file != plain.tokenizer_file
    assert read(hf_directory) == made, "a second start finds the same file"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"tokenizer_config": {"eos_token": "</s>"}, "special_tokens_map": {"eos_token": "<|end|>"}},
            "special_tokens_map.json's eos_token = '<|end|>' counts, not tokenizer_config.json's '</s>'",
        ),
        (
            {"tokenizer_config": {"added_tokens_decoder": {}}, "added_tokens": {"<x>": 300}},
            "added_tokens.json is not followed: tokenizer_config.json has added_tokens_decoder",
        ),
        ({"added_tokens": {"<x>": 290}}, "token '<x>' gets id 259, as in transformers, though a file says 290"),
        ({"added_tokens": {"<x>": 256}}, "added_tokens.json gives id 256 to '<x>', tokenizer.json to '<s>'"),
        (
            {"tokenizer_config": {"add_bos_token": True, "bos_token": "<s>"}},
            "add_bos_token = true is not followed, as by transformers: tokenizer.json's post_processor counts",
        ),
        ({"tokenizer_config": {"tokenizer_class": "CodeLlamaTokenizer"}}, "CodeLlamaTokenizer is not known"),
        ({"tokenizer_config": {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}}, "pre_tokenizer of"),
        ({"added_tokens": {f"<{index}>": 259 + index for index in range(50)}}, "9 tokens have ids beyond the model's"),
        ({"tokenizer_config": {"auto_map": {"AutoTokenizer": ["x.Y", None]}}}, "auto_map names code"),
    ],
)
def test_what_is_overruled_is_said(
    hf_directory: HfDirectory, caplog: pytest.LogCaptureFixture, files: dict[str, Any], said: str
) -> None:
    for name, content in files.items():
        hf_directory.write(f"{name}.json", (FAST if name == "tokenizer_config" else {}) | content)
    with caplog.at_level(logging.WARNING):
        read(hf_directory)
    assert said in caplog.text


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"fix_mistral_regex": True}, "fix_mistral_regex = True is not served"),
        (
            {"clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True},
            "clean_up.*_for_bpe_even_though_it_will_corrupt_output = True is not served",
        ),
        ({"fast_tokenizer_files": ["tokenizer.4.0.0.json"]}, "fast_tokenizer_files = .* is not served"),
        ({"init_inputs": ["x"]}, "init_inputs = .* is not served"),
        ({"eos_token": 5}, "eos_token holds no token"),
        ({"extra_special_tokens": {"x_token": 5}}, None),
        ({"added_tokens_decoder": {"5": 5}}, "added_tokens_decoder: Expected `object`"),
        ({"added_tokens_decoder": {"x": token("x")}}, "added_tokens_decoder: Expected `int`"),
        ({"chat_template": 5}, "chat_template: Expected `str | array | null`"),
    ],
)
def test_refusals_name_the_key(hf_directory: HfDirectory, keys: dict[str, Any], message: str | None) -> None:
    hf_directory.tokenizer_config(**keys)
    if message is None:
        assert "x_token" not in read(hf_directory).special_tokens
        return
    with pytest.raises(ModelError, match=rf"tokenizer_config\.json: {message}"):
        read(hf_directory)


def test_a_definition_that_would_vary_is_refused(hf_directory: HfDirectory) -> None:
    file = hf_directory.path / "tokenizer.json"
    definition = json.loads(file.read_text())
    definition["model"]["dropout"] = 0.1
    file.write_text(json.dumps(definition))
    with pytest.raises(ModelError, match=r"tokenizer\.json: model\.dropout = 0\.1 is not served"):
        read(hf_directory)


# Files in other encodings: each refused in a sentence that names it, never a traceback.

JSON_FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
TEMPLATE_FILES = ["chat_template.jinja", "additional_chat_templates/tool_use.jinja"]


@pytest.mark.parametrize("name", [*JSON_FILES, *TEMPLATE_FILES, "chat_template.json"])
@pytest.mark.parametrize(
    "content",
    [
        b"\xff",
        b'{"a": "\xff\xfe"}',
        '{"a": "b"}'.encode("utf-16"),
        '{"a": "é"}'.encode("latin-1"),
        b'{"a": "\xed\xa0\x80"}',
    ],
)
def test_a_file_that_is_no_utf8_is_named(hf_directory: HfDirectory, name: str, content: bytes) -> None:
    file = hf_directory.path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    with pytest.raises(ModelError, match=file.name.replace(".", r"\.")):
        read(hf_directory)


@pytest.mark.parametrize("name", [*JSON_FILES, "chat_template.json"])
@pytest.mark.parametrize("content", [b"", b"[", b"[]", b"5", b'"\\ud800"', b"[" * 100_000, b"1" * 5000, b"NaN"])
def test_a_file_that_is_no_object_is_named(hf_directory: HfDirectory, name: str, content: bytes) -> None:
    (hf_directory.path / name).write_bytes(content)
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        read(hf_directory)


def test_a_byte_order_mark(hf_directory: HfDirectory) -> None:
    """transformers stops at one in JSON, and writes a template's into every prompt."""
    plain = read(hf_directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        file = hf_directory.path / name
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    marked = read(hf_directory)
    assert marked.tokenizer_file is not None
    assert Tokenizer.from_file(marked.tokenizer_file).get_vocab_size() == 259
    assert marked.special_tokens == plain.special_tokens
    (hf_directory.path / "chat_template.jinja").write_bytes(b"\xef\xbb\xbf{{ messages }}")
    with pytest.raises(ModelError, match=r"chat_template\.jinja starts with a byte-order mark"):
        read(hf_directory)


# Chat templates, by transformers' get_chat_template.

NAMED = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}, {"name": "rag", "template": "R"}]


@pytest.mark.parametrize(
    ("in_config", "files"),
    [
        ("C", {}),
        (NAMED, {}),
        (NAMED[:1], {}),
        (NAMED, {"chat_template.jinja": "F"}),
        (NAMED, {"additional_chat_templates/tool_use.jinja": "A"}),
        ("C", {"chat_template.jinja": "F\r\n", "additional_chat_templates/tool_use.jinja": "A"}),
        (None, {"chat_template.jinja": "F"}),
        (None, {}),
    ],
)
def test_templates_are_those_of_transformers(hf_directory: HfDirectory, in_config: Any, files: dict[str, str]) -> None:
    hf_directory.tokenizer_config(**({} if in_config is None else {"chat_template": in_config}))
    for name, content in files.items():
        file = hf_directory.path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content.encode())
    spec = read(hf_directory)
    theirs = transformers.AutoTokenizer.from_pretrained(hf_directory.path)

    def chosen(tools: list[dict[str, Any]] | None) -> str | None:
        try:
            template: str = theirs.get_chat_template(tools=tools)
        except ValueError:
            return None
        return template

    with_tools = spec.tool_use_template if spec.tool_use_template is not None else spec.chat_template
    assert (spec.chat_template, with_tools) == (chosen(None), chosen([{}]))


def test_a_processors_template_is_taken_where_no_other_is(
    hf_directory: HfDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    hf_directory.write("chat_template.json", {"chat_template": "P"})
    assert read(hf_directory).chat_template == "P"
    hf_directory.tokenizer_config(chat_template="C")
    assert read(hf_directory).chat_template == "C"
    assert "the chat templates of chat_template.json are not used" in caplog.text
