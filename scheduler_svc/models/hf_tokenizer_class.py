"""Tokenizer classes: which of transformers' reads a directory, and what it does not take from tokenizer.json.

Three classes that the served families name build normalizer, pre-tokenizer, decoder and BPE options themselves, from
keys of tokenizer_config.json, and take vocabulary, merges and post-processor alone from tokenizer.json (transformers
5, `AutoTokenizer.from_pretrained` and the classes' `__init__`). All others take tokenizer.json as it is.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

_QWEN2_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)

_OF_FAMILY = {"qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer"}
"""Where no file names a class."""

_GENERIC = frozenset({"PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend", "PythonBackend"})
_BPE_OPTIONS: dict[str, Any] = {
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}


class TokenizerClass(msgspec.Struct, frozen=True, kw_only=True):
    """What a class sets itself."""

    name: str
    parts: dict[str, Any]
    """Parts of tokenizer.json that take the place of the file's."""
    bpe: dict[str, Any]
    """The same of its `model`."""
    tokens: dict[str, str]
    """Named tokens where the files say nothing."""
    named_tokens_are_plain: bool = False
    """All named tokens are added once more, as special tokens without any other flag."""


def class_of(family: str, config: Mapping[str, Any], model_class: str | None, definition: bytes) -> str | None:
    """The class that transformers takes, by its name without `Fast`; none for one that takes tokenizer.json as it is.

    `config` is tokenizer_config.json, `model_class` the tokenizer_class of config.json, `definition` tokenizer.json.
    """
    named = config.get("tokenizer_class") or model_class
    name = named.removesuffix("Fast") if isinstance(named, str) else None
    family_class = _OF_FAMILY.get(family)
    if name == "LlamaTokenizer" and family != "qwen2" and b'"ByteLevel"' in definition:
        return None
    if family == "qwen2":
        return family_class
    if family == "mistral":
        return None
    if name is None:
        return family_class
    return None if name in _GENERIC or f"{name}Fast" in _GENERIC else name


def tokenizer_class(name: str, config: Mapping[str, Any]) -> TokenizerClass | None:
    """What the class of that name sets, by the keys of tokenizer_config.json; none for a class that is not known."""
    build = _CLASSES.get(name)
    return None if build is None else build(name, config)


def _llama(name: str, config: Mapping[str, Any]) -> TokenizerClass:
    prefix = config.get("add_prefix_space")
    prefix = True if prefix is None else bool(prefix)
    scheme = "never" if not prefix else "always" if config.get("legacy") else "first"
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return TokenizerClass(
        name=name,
        parts={
            "normalizer": None,
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False},
            "decoder": {"type": "Sequence", "decoders": steps},
        },
        bpe=_BPE_OPTIONS | {"fuse_unk": True, "byte_fallback": True},
        tokens={"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    )


def _qwen2(name: str, config: Mapping[str, Any]) -> TokenizerClass:
    cut = {"type": "Split", "pattern": {"Regex": _QWEN2_CUT}, "behavior": "Isolated", "invert": False}
    whole_bytes = _byte_level(bool(config.get("add_prefix_space")), use_regex=False)
    return TokenizerClass(
        name=name,
        parts={
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut, whole_bytes]},
            "decoder": _byte_level(True, use_regex=True),
        },
        bpe=_BPE_OPTIONS,
        tokens=dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>"),
        named_tokens_are_plain=True,
    )


def _gpt2(name: str, config: Mapping[str, Any]) -> TokenizerClass:
    return TokenizerClass(
        name=name,
        parts={
            "normalizer": None,
            "pre_tokenizer": _byte_level(bool(config.get("add_prefix_space")), use_regex=True),
            "decoder": _byte_level(True, use_regex=True),
        },
        bpe=_BPE_OPTIONS,
        tokens=dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>"),
    )


def _byte_level(add_prefix_space: bool, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": use_regex}


_CLASSES: dict[str, Callable[[str, Mapping[str, Any]], TokenizerClass]] = {
    "LlamaTokenizer": _llama,
    "Qwen2Tokenizer": _qwen2,
    "GPT2Tokenizer": _gpt2,
}


def is_same_part(name: str, ours: Any, theirs: Any) -> bool:
    """Whether two parts of tokenizer.json do the same: what moves offsets, and what a decoder does not read, is
    left aside, and an unset option is the empty one."""
    return bool(_essence(name, ours) == _essence(name, theirs))


def _essence(name: str, part: Any) -> Any:
    if isinstance(part, list):
        return [_essence(name, item) for item in part]
    if not isinstance(part, dict):
        return part or None
    kept = {key: _essence(name, value) for key, value in part.items() if key != "trim_offsets"}
    if kept.get("type") == "ByteLevel":
        kept = {"type": "ByteLevel"} if name == "decoder" else kept | {"use_regex": part.get("use_regex", True) or None}
    if kept.get("type") == "Sequence" and name == "normalizer" and len(part.get("normalizers", ())) == 0:
        return None
    return kept
