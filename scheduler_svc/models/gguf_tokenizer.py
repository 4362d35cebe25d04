"""A GGUF file's tokenizer as the definition that the `tokenizers` library reads.

A file says `tokenizer.ggml.model` (the algorithm; byte-level BPE, "gpt2", is served) and `tokenizer.ggml.pre` (how text
is cut before it). The cuts are those of llama.cpp's `src/llama-vocab.cpp`, which stand in the original models'
tokenizer.json files too. Another value is refused: a wrong cut gives wrong tokens without any error.
"""

from typing import Any

import msgspec
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from pagewire.scheduler_svc.startup_errors import ModelError

_CONTROL, _USER_DEFINED = 3, 4
"""Values of tokenizer.ggml.token_type that need more than a row in the vocabulary."""

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"

_PRE_TOKENIZERS = {
    "gpt-2": "gpt-2",
    "default": "gpt-2",
    "smollm": "smollm",
    "qwen2": "qwen2",
    "deepseek-r1-qwen": "qwen2",
    "llama-bpe": "llama-bpe",
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
}
"""tokenizer.ggml.pre → the cut; several names stand for one. A file without the key is cut as GPT-2's."""

_END_TEXTS = frozenset({"<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"})
"""Control tokens that end a text in every model that has them. GGUF names one end-of-sequence token, where Hugging
Face's generation_config.json often lists two: Qwen3 ends a turn with one and a document with the other."""

_NAMED_TOKENS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # spelled so in the format
    "pad_token": "padding_token_id",
}


class GgufTokenizer(msgspec.Struct, frozen=True, kw_only=True):
    """What a frontend needs to know about text."""

    definition: str
    """Content of tokenizer.json."""
    add_bos: bool
    eos_token_ids: tuple[int, ...]
    special_tokens: dict[str, str]
    chat_template: str | None


class _Vocabulary(msgspec.Struct, frozen=True):
    """The arrays, checked: as many types as tokens, every merge two parts."""

    tokens: list[str]
    types: list[int]
    merges: list[tuple[str, str]]


def build_tokenizer(values: dict[str, Any], vocab_size: int, origin: str) -> GgufTokenizer:
    """Build the tokenizer from a file's key-value pairs. Raises ModelError naming what cannot be served."""
    algorithm = values.get("tokenizer.ggml.model")
    if algorithm != "gpt2":
        raise ModelError(f"{origin}: tokenizer.ggml.model = {algorithm!r} is not served; 'gpt2' is")
    named_cut = values.get("tokenizer.ggml.pre", "default")
    if named_cut not in _PRE_TOKENIZERS:
        raise ModelError(
            f"{origin}: tokenizer.ggml.pre = {named_cut!r} is not served; {', '.join(_PRE_TOKENIZERS)} are"
        )
    cut = _PRE_TOKENIZERS[named_cut]
    vocabulary = _vocabulary(values, vocab_size, origin)
    tokenizer = _bpe(vocabulary, cut, origin)
    special_tokens = _special_tokens(values, vocabulary.tokens, origin)
    template = values.get("tokenizer.chat_template")
    return GgufTokenizer(
        definition=tokenizer.to_str(),
        # llama.cpp's rule: a file that does not say gets the token only with Llama 3's tokenizer.
        add_bos=bool(values.get("tokenizer.ggml.add_bos_token", cut == "llama-bpe")) and "bos_token" in special_tokens,
        eos_token_ids=_eos_ids(values, vocabulary, origin),
        special_tokens=special_tokens,
        chat_template=template if isinstance(template, str) else None,
    )


def _vocabulary(values: dict[str, Any], vocab_size: int, origin: str) -> _Vocabulary:
    try:
        tokens = msgspec.convert(values.get("tokenizer.ggml.tokens"), list[str])
        types = msgspec.convert(values.get("tokenizer.ggml.token_type", [1] * len(tokens)), list[int])
        lines = msgspec.convert(values.get("tokenizer.ggml.merges"), list[str])
    except msgspec.ValidationError as error:
        raise ModelError(f"{origin}: tokenizer.ggml.tokens, token_type or merges: {error}") from error
    if len(tokens) > vocab_size or len(types) != len(tokens):
        raise ModelError(
            f"{origin}: {len(tokens)} tokens and {len(types)} token types do not fit {vocab_size} embeddings"
        )
    merges = []
    for line in lines:
        left, space, right = line.partition(" ")
        if not (left and space and right) or " " in right:
            raise ModelError(f"{origin}: tokenizer.ggml.merges holds {line!r}, which is not two parts")
        merges.append((left, right))
    return _Vocabulary(tokens, types, merges)


def _bpe(vocabulary: _Vocabulary, cut: str, origin: str) -> Tokenizer:
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    try:
        # Llama 3's tokenizer takes a word that is in the vocabulary whole, though no chain of merges leads to it.
        bpe = models.BPE(vocab=ids, merges=vocabulary.merges, ignore_merges=cut == "llama-bpe")
    except Exception as error:  # the library raises nothing more specific
        raise ModelError(f"{origin}: the tokenizer's merges do not fit its tokens: {error}") from error
    tokenizer = Tokenizer(bpe)
    tokenizer.decoder = decoders.ByteLevel()
    whole_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    match cut:
        case "gpt-2":
            tokenizer.pre_tokenizer = gpt2
        case "smollm":
            digits = pre_tokenizers.Digits(individual_digits=True)
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, gpt2])
        case "qwen2":
            tokenizer.normalizer = normalizers.NFC()
            split = pre_tokenizers.Split(Regex(_QWEN2), "isolated")
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, whole_bytes])
        case "llama-bpe":
            split = pre_tokenizers.Split(Regex(_LLAMA3), "isolated")
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, whole_bytes])
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == _CONTROL, normalized=False)
            for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
            if kind in (_CONTROL, _USER_DEFINED)
        ]
    )
    return tokenizer


def _special_tokens(values: dict[str, Any], tokens: list[str], origin: str) -> dict[str, str]:
    found = {}
    for name, key in _NAMED_TOKENS.items():
        index = values.get(f"tokenizer.ggml.{key}")
        if index is None:
            continue
        if not isinstance(index, int) or not 0 <= index < len(tokens):
            raise ModelError(f"{origin}: tokenizer.ggml.{key} = {index!r} must be 0 to {len(tokens) - 1}")
        found[name] = tokens[index]
    return found


def _eos_ids(values: dict[str, Any], vocabulary: _Vocabulary, origin: str) -> tuple[int, ...]:
    """The file's own end tokens first, then control tokens that are ends by their text."""
    named = [values.get(f"tokenizer.ggml.{key}") for key in ("eos_token_id", "eot_token_id", "eom_token_id")]
    for index in named:
        if index is not None and not (isinstance(index, int) and 0 <= index < len(vocabulary.tokens)):
            raise ModelError(f"{origin}: end-of-sequence id {index!r} must be 0 to {len(vocabulary.tokens) - 1}")
    known = [
        index
        for index, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind == _CONTROL and token in _END_TEXTS
    ]
    return tuple(dict.fromkeys([index for index in named if index is not None] + known))
