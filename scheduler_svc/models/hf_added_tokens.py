"""Added and named special tokens of a Hugging Face directory, put together as transformers does.

They stand in up to four files that may contradict each other: `added_tokens` of tokenizer.json, `added_tokens_decoder`
and the named tokens of tokenizer_config.json, special_tokens_map.json and added_tokens.json. The rules are those of
transformers 5 (`PreTrainedTokenizerBase._from_pretrained` and `TokenizersBackend.__init__`), down to which file is not
looked at when another says something.

It knows neither files nor which tokenizer class reads them.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class AddedToken(msgspec.Struct, frozen=True):
    """A token that is matched whole, before the text is cut; fields as in tokenizer.json."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool | None = None
    """The opposite of `special` where it is not said."""
    special: bool = False

    def __post_init__(self) -> None:
        if self.normalized is None:
            msgspec.structs.force_setattr(self, "normalized", not self.special)


class TokenSources(msgspec.Struct, frozen=True, kw_only=True):
    """What the files say, decoded and not yet judged."""

    config: Mapping[str, Any]
    """tokenizer_config.json."""
    special_tokens_map: Mapping[str, Any] | None
    added_tokens: Mapping[str, int] | None
    """added_tokens.json."""
    file_tokens: Mapping[int, AddedToken]
    """`added_tokens` of tokenizer.json, by id."""
    class_tokens: Mapping[str, str]
    """Named tokens that the tokenizer's class has where the files say nothing."""


class TokensToAdd(msgspec.Struct, frozen=True, kw_only=True):
    """The result."""

    named: dict[str, str]
    """Named special tokens, as a chat template sees them."""
    added: list[AddedToken]
    """In the order in which they are added."""
    extra: list[AddedToken]
    """Special tokens without a name."""
    claimed: dict[int, str]
    """Ids that the files beside tokenizer.json claim for a token."""
    overruled: list[str]
    """Sentences about what one file says and another overrules."""


def collect_tokens(sources: TokenSources, known: Iterable[str]) -> TokensToAdd:
    """Put together what the files say; `known` are tokens that were added before. Raises ValueError naming the key
    that holds no token."""
    overruled: list[str] = []
    values = dict(sources.config)
    # transformers 5's name for an older key, which it reads where the new one says nothing.
    if "additional_special_tokens" in values and not values.get("extra_special_tokens"):
        values["extra_special_tokens"] = values.pop("additional_special_tokens")
    table: dict[int, AddedToken] = {}
    if values.get("added_tokens_decoder") is not None:
        table = _decoder_table(values["added_tokens_decoder"])
        claimed = {index: token.content for index, token in table.items()}
        for name, content in (
            ("special_tokens_map.json", sources.special_tokens_map),
            ("added_tokens.json", sources.added_tokens),
        ):
            if content and not _repeats(content, values, claimed):
                overruled.append(f"{name} is not followed: tokenizer_config.json has added_tokens_decoder")
    else:
        overruled += _take_map(values, sources.special_tokens_map or {})
        # An object of tokenizer_config.json is not looked into here, and what it names stays an ordinary token of
        # added_tokens.json until it is added.
        looked_at = [
            value for value in [*map(values.get, NAMED_TOKENS), *_extra(values)] if not isinstance(value, dict)
        ]
        special = {_text(value) for value in looked_at}
        for text, index in (sources.added_tokens or {}).items():
            table[index] = AddedToken(text, special=text in special)
        claimed = {index: token.content for index, token in table.items()}
        for index, token in sources.file_tokens.items():
            if index in claimed and claimed[index] != token.content:
                overruled.append(
                    f"added_tokens.json gives id {index} to {claimed.pop(index)!r}, tokenizer.json to "
                    f"{token.content!r}, which counts"
                )
            table[index] = token
    extra = [_token("extra_special_tokens", value) for value in _extra(values)]
    named = _named(values, sources.class_tokens, {token.content: token for token in table.values()})
    return TokensToAdd(
        named={name: token.content for name, token in named.items()},
        added=_to_add(table, named, extra, set(known)),
        extra=extra,
        claimed=claimed,
        overruled=overruled,
    )


def _to_add(
    table: Mapping[int, AddedToken], named: Mapping[str, AddedToken], extra: list[AddedToken], known: set[str]
) -> list[AddedToken]:
    """Tokens of the table in the order of their ids, then named ones, then others, where nothing has them yet."""
    adding = [token for _, token in sorted(table.items())]
    present = known | {token.content for token in adding}
    adding += [token for token in dict.fromkeys(named.values()) if token.content not in present]
    adding += [token for token in dict.fromkeys(extra) if token.content not in present and token not in adding]
    # The documentation's rule for both kinds: decoding leaves them out, whatever another file says of them.
    names = {token.content for token in [*named.values(), *extra]}
    return [msgspec.structs.replace(token, special=True) if token.content in names else token for token in adding]


def _decoder_table(value: Any) -> dict[int, AddedToken]:
    try:
        return msgspec.convert(value, dict[int, AddedToken], strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"added_tokens_decoder: {error}") from error


def _repeats(content: Mapping[str, Any], values: Mapping[str, Any], claimed: Mapping[int, str]) -> bool:
    """Whether a file that is not looked at says nothing else."""
    texts = set(claimed.values())
    for name, value in content.items():
        if isinstance(value, int):
            if claimed.get(value) != name:
                return False
        elif isinstance(value, list):
            if any(_text(item) not in texts for item in value):
                return False
        elif _text(value) != _text(values.get(name)):
            return False
    return True


def _take_map(values: dict[str, Any], special_tokens_map: Mapping[str, Any]) -> list[str]:
    """special_tokens_map.json wins over tokenizer_config.json, where that has no added_tokens_decoder."""
    overruled = []
    for name, value in special_tokens_map.items():
        if name == "extra_special_tokens" and isinstance(value, list):
            present = [_text(item) for item in _extra(values)]
            value = [*_extra(values), *(item for item in value if _text(item) not in present)]
        elif name == "additional_special_tokens":
            # Left under its older name, which counts where nothing stands under the new one.
            if values.get("extra_special_tokens"):
                continue
            name = "extra_special_tokens"
        elif values.get(name) is not None and _text(values[name]) != _text(value):
            overruled.append(
                f"special_tokens_map.json's {name} = {_text(value)!r} counts, not tokenizer_config.json's "
                f"{_text(values[name])!r}"
            )
        values[name] = _token(name, value) if isinstance(value, dict) and name != "extra_special_tokens" else value
    return overruled


def _named(
    values: Mapping[str, Any], class_tokens: Mapping[str, str], table: Mapping[str, AddedToken]
) -> dict[str, AddedToken]:
    found: dict[str, AddedToken] = {}
    for name in NAMED_TOKENS:
        value = values[name] if name in values else class_tokens.get(name)
        if value is not None:
            token = _token(name, value)
            found[name] = table.get(token.content, token)
    extra = values.get("extra_special_tokens")
    others = {name: value for name, value in values.items() if name.endswith("_token") and name not in NAMED_TOKENS}
    for name, value in (others | (extra if isinstance(extra, dict) else {})).items():
        # Flags such as add_bos_token end alike and are no tokens.
        if isinstance(value, str | dict | AddedToken):
            found[name] = _token(name, value)
    return found


def _extra(values: Mapping[str, Any]) -> list[Any]:
    extra = values.get("extra_special_tokens")
    return extra if isinstance(extra, list) else []


def _text(value: Any) -> str | None:
    """A token stands as text, or as an object with its `content`."""
    if isinstance(value, AddedToken):
        return value.content
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _token(name: str, value: Any) -> AddedToken:
    if isinstance(value, AddedToken):
        return value
    if isinstance(value, str):
        return AddedToken(value, special=True)
    try:
        return msgspec.structs.replace(msgspec.convert(value, AddedToken), special=True)
    except msgspec.ValidationError as error:
        raise ValueError(f"{name} holds no token: {error}") from error


class AddedVocabulary:
    """Which tokens a tokenizer has beyond its model's, kept as the `tokenizers` library keeps them."""

    def __init__(self, vocabulary: Mapping[str, int]) -> None:
        """`vocabulary` is the model's own."""
        self._vocabulary = vocabulary
        self._ids: dict[str, int] = {}
        self._tokens: dict[int, AddedToken] = {}
        self._special: set[str] = set()

    def add(self, tokens: Iterable[AddedToken]) -> None:
        """A token that is there already gets new flags, and stays special where it was."""
        for token in tokens:
            if token.special and token.content:
                self._special.add(token.content)
            if not token.content or self._tokens.get(self._ids.get(token.content, -1)) == token:
                continue
            index = self.id_of(token.content)
            if index is None:
                size = len(self._vocabulary)
                index = max(size, max(self._ids.values(), default=-1) + 1) if self._ids else size
            self._ids[token.content] = index
            self._tokens[index] = token

    def id_of(self, text: str) -> int | None:
        """Of a token, added or the model's own."""
        return self._ids.get(text, self._vocabulary.get(text))

    def entries(self) -> list[tuple[int, AddedToken]]:
        """Every added token with its id, by id; `special` says what decoding leaves out."""
        return [
            (index, msgspec.structs.replace(token, special=token.content in self._special))
            for index, token in sorted(self._tokens.items())
        ]
