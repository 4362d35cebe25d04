"""A GGUF file's tokenizer as the definition that the `tokenizers` library reads.

A file says `tokenizer.ggml.model` (the algorithm; byte-level BPE, "gpt2", is served) and `tokenizer.ggml.pre` (how text
is cut before it). The cuts are those of llama.cpp's `src/llama-vocab.cpp`, which stand in the original models'
tokenizer.json files too. Another value is refused: a wrong cut gives wrong tokens without any error.

Keys are those of ggml's docs/gguf.md and of llama.cpp, which also says what each does to byte-level BPE; a key that
would change ids or text and is not served is refused by name.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from pagewire.scheduler_svc.endings import is_ending
from pagewire.scheduler_svc.models.chat_templates import ChatTemplates, Warn, choose
from pagewire.scheduler_svc.startup_errors import ModelError

_NORMAL = 1
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5
"""Values of tokenizer.ggml.token_type that are not a row in the vocabulary alone: the first two are matched whole and
have no text, the third is matched whole and is text, the last is nothing at all."""

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"

_PRE_TOKENIZERS = {
    "gpt-2": "gpt-2",
    "default": "default",
    "smollm": "smollm",
    "qwen2": "qwen2",
    "deepseek-r1-qwen": "qwen2",
    "llama-bpe": "llama-bpe",
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
}
"""tokenizer.ggml.pre → the cut; several names stand for one. A file without the key is cut as `default` says."""

_DEFAULT_CUTS = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)
"""Each cuts what the one before left."""

_WITHOUT_EFFECT = (
    "tokenizer.ggml.add_space_prefix",
    "tokenizer.ggml.remove_extra_whitespaces",
    "tokenizer.ggml.precompiled_charsmap",
    "tokenizer.huggingface.json",
    "tokenizer.rwkv.world",
)
"""Keys that llama.cpp does not look at for byte-level BPE; that a file has them is said."""

_TEMPLATE = "tokenizer.chat_template"
_TEMPLATE_NAMES = "tokenizer.chat_templates"

_END_TEXTS = frozenset({"<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"})
"""Control tokens that end a text in every model that has them. GGUF names one end-of-sequence token, where Hugging
Face's generation_config.json often lists two: Qwen3 ends a turn with one and a document with the other."""

_END_KEYS = (
    *("eos_token_id", "eot_token_id", "eom_token_id"),
    # What llama.cpp ends a text at too: tokens that only stand between files of code.
    *("fim_pad_token_id", "fim_rep_token_id", "fim_sep_token_id"),
)

_NAMED_TOKENS = {
    "bos_token": ("bos_token_id",),
    "eos_token": ("eos_token_id",),
    "unk_token": ("unknown_token_id",),
    "sep_token": ("seperator_token_id", "separator_token_id"),  # as files spell it, and as the format's text does
    "pad_token": ("padding_token_id",),
    "cls_token": ("cls_token_id",),
    "mask_token": ("mask_token_id",),
}


class GgufTokenizer(msgspec.Struct, frozen=True, kw_only=True):
    """What a frontend needs to know about text."""

    definition: str
    """Content of tokenizer.json."""
    eos_token_ids: tuple[int, ...]
    special_tokens: dict[str, str]
    chat_templates: ChatTemplates


class _Vocabulary(msgspec.Struct, frozen=True):
    """The arrays, checked: as many types as tokens, every merge two parts."""

    tokens: list[str]
    types: list[int]
    merges: list[tuple[str, str]]

    def with_added(self, texts: list[str]) -> "_Vocabulary":
        """Ordinary tokens among `texts` become user-defined ones."""
        added = frozenset(texts)
        types = [
            _USER_DEFINED if token in added and kind == _NORMAL else kind
            for token, kind in zip(self.tokens, self.types, strict=True)
        ]
        return msgspec.structs.replace(self, types=types)


def build_tokenizer(values: dict[str, Any], vocab_size: int, origin: str, warn: Warn) -> GgufTokenizer:
    """Build the tokenizer from a file's key-value pairs, and tell `warn` what of it has no effect. Raises ModelError
    naming what cannot be served."""
    algorithm = values.get("tokenizer.ggml.model")
    if algorithm != "gpt2":
        raise ModelError(f"{origin}: tokenizer.ggml.model = {algorithm!r} is not served; 'gpt2' is")
    named_cut = values.get("tokenizer.ggml.pre", "default")
    if not isinstance(named_cut, str) or named_cut not in _PRE_TOKENIZERS:
        raise ModelError(
            f"{origin}: tokenizer.ggml.pre = {named_cut!r} is not served; {', '.join(_PRE_TOKENIZERS)} are"
        )
    if _flag(values, "add_sep_token", False, origin):
        raise ModelError(f"{origin}: tokenizer.ggml.add_sep_token = True is not served")
    ignored = [key for key in _WITHOUT_EFFECT if values.get(key)]
    if ignored:
        warn(f"{origin}: {', '.join(ignored)}: without effect on a tokenizer of this kind, as in llama.cpp")
    cut = _PRE_TOKENIZERS[named_cut]
    vocabulary = _vocabulary(values, vocab_size, origin)
    special_tokens = _special_tokens(values, vocabulary.tokens, origin)
    tokenizer = _bpe(vocabulary, cut, special_tokens, origin)
    # llama.cpp's rule: a file that does not say gets the token only with Llama 3's tokenizer.
    _add_ends(
        tokenizer,
        special_tokens.get("bos_token") if _flag(values, "add_bos_token", cut == "llama-bpe", origin) else None,
        special_tokens.get("eos_token") if _flag(values, "add_eos_token", False, origin) else None,
    )
    return GgufTokenizer(
        definition=tokenizer.to_str(),
        eos_token_ids=_eos_ids(values, vocabulary, origin),
        special_tokens=special_tokens,
        chat_templates=_chat_templates(values, origin, warn),
    )


def _flag(values: Mapping[str, Any], name: str, default: bool, origin: str) -> bool:
    value = values.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, bool):
        raise ModelError(f"{origin}: tokenizer.ggml.{name} = {value!r} must be true or false")
    return value


def _add_ends(tokenizer: Tokenizer, bos: str | None, eos: str | None) -> None:
    """Put tokens at the ends of every text."""
    ends = [token for token in (bos, eos) if token is not None]
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*([] if bos is None else [bos]), "$A", *([] if eos is None else [eos])],
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(ends)],
        )


def _chat_templates(values: Mapping[str, Any], origin: str, warn: Warn) -> ChatTemplates:
    """tokenizer.chat_template is the default; tokenizer.chat_templates names others, which have keys of their own."""
    try:
        default = msgspec.convert(values.get(_TEMPLATE), str | None)
        names = msgspec.convert(values.get(_TEMPLATE_NAMES, []), list[str])
        keys = {key.removeprefix(f"{_TEMPLATE}."): key for key in values if key.startswith(f"{_TEMPLATE}.")}
        missing = [name for name in names if name not in keys]
        if missing:
            raise ModelError(
                f"{origin}: {_TEMPLATE_NAMES} names {missing[0]!r}, but {_TEMPLATE}.{missing[0]} is missing"
            )
        named = {name: msgspec.convert(values[key], str) for name, key in keys.items()}
    except msgspec.ValidationError as error:
        raise ModelError(f"{origin}: {_TEMPLATE} or {_TEMPLATE_NAMES}: {error}") from error
    return choose(named if default is None else named | {"default": default}, origin, f"{origin}: {_TEMPLATE}", warn)


def _vocabulary(values: dict[str, Any], vocab_size: int, origin: str) -> _Vocabulary:
    try:
        tokens = msgspec.convert(values.get("tokenizer.ggml.tokens"), list[str])
        types = msgspec.convert(values.get("tokenizer.ggml.token_type", [1] * len(tokens)), list[int])
        lines = msgspec.convert(values.get("tokenizer.ggml.merges"), list[str])
        added = msgspec.convert(values.get("tokenizer.ggml.added_tokens", []), list[str])
    except msgspec.ValidationError as error:
        raise ModelError(f"{origin}: tokenizer.ggml.tokens, token_type, merges or added_tokens: {error}") from error
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
    absent = set(added) - set(tokens)
    if absent:
        raise ModelError(
            f"{origin}: tokenizer.ggml.added_tokens has {min(absent)!r}, which tokenizer.ggml.tokens lacks"
        )
    return _Vocabulary(tokens, types, merges).with_added(added)


def _bpe(vocabulary: _Vocabulary, cut: str, special_tokens: dict[str, str], origin: str) -> Tokenizer:
    kept = {part for pair in vocabulary.merges for part in (*pair, "".join(pair))} | set(special_tokens.values())
    ids = {
        token: index
        for index, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind != _UNUSED or token in kept
    }
    try:
        # Llama 3's tokenizer takes a word that is in the vocabulary whole, though no chain of merges leads to it.
        bpe = models.BPE(vocab=ids, merges=vocabulary.merges, ignore_merges=cut == "llama-bpe")
    except BaseException as error:  # the library raises nothing more specific, and may panic
        if is_ending(error):
            raise
        raise ModelError(f"{origin}: the tokenizer's merges do not fit its tokens: {error}") from error
    tokenizer = Tokenizer(bpe)
    tokenizer.decoder = decoders.ByteLevel()
    whole_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    match cut:
        case "default":
            cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in _DEFAULT_CUTS]
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, whole_bytes])
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
            AddedToken(token, special=kind != _USER_DEFINED, normalized=False)
            for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
            if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        ]
    )
    return tokenizer


def _special_tokens(values: dict[str, Any], tokens: list[str], origin: str) -> dict[str, str]:
    found = {}
    for name, key in [(name, key) for name, keys in _NAMED_TOKENS.items() for key in keys]:
        index = values.get(f"tokenizer.ggml.{key}")
        if index is None:
            continue
        if not isinstance(index, int) or not 0 <= index < len(tokens):
            raise ModelError(f"{origin}: tokenizer.ggml.{key} = {index!r} must be 0 to {len(tokens) - 1}")
        found[name] = tokens[index]
    return found


def _eos_ids(values: dict[str, Any], vocabulary: _Vocabulary, origin: str) -> tuple[int, ...]:
    """The file's own end tokens first, then control tokens that are ends by their text."""
    named = [values.get(f"tokenizer.ggml.{key}") for key in _END_KEYS]
    for index in named:
        if index is not None and not (isinstance(index, int) and 0 <= index < len(vocabulary.tokens)):
            raise ModelError(f"{origin}: end-of-sequence id {index!r} must be 0 to {len(vocabulary.tokens) - 1}")
    known = [
        index
        for index, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind == _CONTROL and token in _END_TEXTS
    ]
    return tuple(dict.fromkeys([index for index in named if index is not None] + known))
