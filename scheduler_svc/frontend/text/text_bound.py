"""Text bound: the most text that a number of tokens can stand for, from a tokenizer's definition.

A text over it need not be tokenized to know that it does not fit: that costs a second and 170 MB for each megabyte. The
bound is exact in one direction: no text that fits is over it. So it is given only for definitions whose every part is
known to lose no text, and there is none for the others, whose parts may turn text of any length into a single token or
into nothing (spaces that are stripped, unknown characters that are fused). Bytes that a byte-level vocabulary lacks,
which vanish, are not counted.

It knows the parts of `tokenizer.json` and no model. Of the parts it asks one question: how many bytes of text can be
behind one byte of what the vocabulary is looked up for? Unicode's normal forms shorten most where the three, two and
two bytes of U+1FBE, U+0308 and U+0301 become the two of U+0390; with compatibility, where the four of U+1D400 become an
A. ASCII they leave alone.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import msgspec

_SHRINK_OF_FORM = {"NFC": 4, "NFD": 4, "NFKC": 4, "NFKD": 4, "Lowercase": 3}
_KEEPING_SPLITTERS = frozenset({"ByteLevel", "Metaspace", "Digits", "UnicodeScripts", "FixedLength"})
_NUM_BYTES = 256


class AddedToken(Protocol):
    """As `tokenizers` has it."""

    @property
    def content(self) -> str: ...
    @property
    def lstrip(self) -> bool: ...
    @property
    def rstrip(self) -> bool: ...


class TextBound:
    """Of one tokenizer."""

    def __init__(self, definition: bytes, added: Iterable[AddedToken], byte_alphabet: Mapping[str, int]) -> None:
        """`added`: every token beside the vocabulary; `byte_alphabet`: how byte-level vocabularies write each byte."""
        described: dict[str, Any] = msgspec.json.decode(definition)
        normalizers = _steps(described.get("normalizer"), "normalizers")
        self._shrink = _shrink(normalizers)
        self._token_bytes, self._vanishing = _vocabulary(described, normalizers, list(added), byte_alphabet)
        if self._vanishing and any(step["type"] != "ByteLevel" for step in normalizers):
            self._shrink = None  # what vanishes may only have become so

    def excess(self, text: str, num_tokens: int) -> tuple[int, int] | None:
        """The text's bytes of UTF-8 and their bound where it cannot be as few tokens, else none."""
        if self._shrink is None or not self._token_bytes:
            return None
        of_ascii, of_any = self._shrink
        limit = num_tokens * self._token_bytes * (of_ascii if text.isascii() else of_any)
        if len(text) * 4 <= limit:
            return None
        size = len(text.encode().translate(None, self._vanishing))
        return (size, limit) if size > limit else None


def _steps(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """A part's steps, sequences within sequences laid flat."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [step for inner in part[name] for step in _steps(inner, name)]


def _shrink(normalizers: list[dict[str, Any]]) -> tuple[int, int] | None:
    """How many bytes of ASCII, and of any text, can become one at most; none where there is no limit."""
    of_ascii = of_any = 1
    is_ascii_yet = True
    for place, step in enumerate(normalizers):
        match step:
            case {"type": "Prepend"}:
                continue
            case {"type": "ByteLevel"} if place == len(normalizers) - 1:
                continue
            # A pattern that stands for other text, or an empty content, could take any length away.
            case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)} if (
                0 < len(pattern.encode()) <= len(content.encode())
            ):
                is_ascii_yet = is_ascii_yet and content.isascii()
            case {"type": str(form)} if form in _SHRINK_OF_FORM:
                of_any *= _SHRINK_OF_FORM[form]
                if not is_ascii_yet:
                    of_ascii *= _SHRINK_OF_FORM[form]
            case _:
                return None
    return of_ascii, of_any


def _vocabulary(
    described: dict[str, Any],
    normalizers: list[dict[str, Any]],
    added: list[AddedToken],
    byte_alphabet: Mapping[str, int],
) -> tuple[int, bytes]:
    """The bytes of the longest token, 0 where a token can stand for more than what it is written as, or text for none;
    and the bytes that are no token and vanish."""
    model = described["model"]
    vocabulary = model.get("vocab")
    splitters = _steps(described.get("pre_tokenizer"), "pretokenizers")
    if (
        model.get("type", "BPE") != "BPE"
        or not isinstance(vocabulary, dict)
        or model.get("continuing_subword_prefix")
        or model.get("end_of_word_suffix")
        or any(token.lstrip or token.rstrip for token in added)  # they take all the spaces beside them along
        or any(_drops_text(step) for step in splitters)
    ):
        return 0, b""
    of_added = max((len(token.content.encode()) for token in added), default=0)
    if any(step["type"] == "ByteLevel" for step in (*splitters, *normalizers)):
        vanishing = bytes(byte for character, byte in byte_alphabet.items() if character not in vocabulary)
        return max(of_added, *map(len, vocabulary), 0), vanishing
    if model.get("byte_fallback") and all(f"<0x{byte:02X}>" in vocabulary for byte in range(_NUM_BYTES)):
        return max(of_added, *(len(token.encode()) for token in vocabulary), 0), b""
    return 0, b""


def _drops_text(splitter: dict[str, Any]) -> bool:
    if splitter["type"] in ("Split", "Punctuation"):
        return bool(splitter.get("behavior", "Isolated") == "Removed")
    return splitter["type"] not in _KEEPING_SPLITTERS
