"""Detokenizer: from token ids to text, token by token.

A table, made once per model from its `tokenizer.json`, gives every id its bytes; a detokenizer per output joins them
into whole UTF-8 characters. It knows neither streams nor stop strings.

    ids      [E2 82] [AC 20] [41]
    texts      ""     "€ "    "A"      a character belongs to the token that completes it

Invariant: the texts of all tokens and the flush at the end, joined, are what the text of prompt and output, decoded at
once, has behind the prompt's: what a decoder does at the start of a text happens once, and a character that the prompt
began is completed.

`tokenizers.decoders.DecodeStream` lost: it decodes the window again for every token (0.6 µs at best), keeps every id
while a model produces invalid UTF-8, so that its cost grows with the square of the length, and can raise
`InvalidPrefix` in mid-stream. A lookup of whole characters is 0.05 µs and cannot fail.

Two families of decoder cover the architectures served: byte-level BPE (Qwen2, Qwen3, Llama 3, SmolLM2) and
SentencePiece pieces with byte fallback (Llama 2, Mistral). Others are refused when the server starts. Where
SentencePiece bytes are invalid UTF-8, `tokenizers` replaces the whole run of byte tokens, also its valid characters,
which cannot be done without holding text back; here only the invalid bytes become U+FFFD.
"""

import codecs
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from pagewire.scheduler_svc.startup_errors import StartupError
from pagewire.wire.codec import WireError, decode_json

_UNDERLINE = "▁"  # SentencePiece writes a space so
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_Utf8Decoder = codecs.getincrementaldecoder("utf-8")
_MAX_CHARACTER_BYTES = 4


class UnsupportedTokenizerError(StartupError):
    """A tokenizer whose text cannot be made token by token; its message names the part and what is supported."""


@dataclass(frozen=True, slots=True)
class TokenTexts:
    """The bytes of every token id, as one setting of `skip_special_tokens` shows them.

    Both lists have as many entries as there are logits; ids that the tokenizer lacks have no bytes.
    """

    raw: list[bytes]
    whole: list[bytes | None]
    """The same where they are valid UTF-8 by themselves, else None."""
    strip_left: int
    """How many spaces at the start of a text its decoder takes off (SentencePiece: 1)."""

    def showing(self, ids: Iterable[int], full: "TokenTexts") -> "TokenTexts":
        """The same with these ids as `full` shows them."""
        raw, whole = self.raw.copy(), self.whole.copy()
        for token in ids:
            raw[token], whole[token] = full.raw[token], full.whole[token]
        return TokenTexts(raw, whole, self.strip_left)


class Detokenizer:
    """One output's bytes that do not make a character yet."""

    __slots__ = ("_decoder", "_strip", "_texts")

    def __init__(self, texts: TokenTexts, after: Sequence[int] = ()) -> None:
        """`after` are the ids, if any, that the output goes on from."""
        self._texts = texts
        self._strip = texts.strip_left
        self._decoder: codecs.IncrementalDecoder | None = None  # while bytes are pending
        if after:
            self._follow(after)

    def _follow(self, ids: Sequence[int]) -> None:
        """Take up the state that these ids leave, reading no more of them than it takes."""
        raw = self._texts.raw
        if self._strip:
            for token in ids:
                self._strip_start(raw[token])
                if not self._strip:
                    break
        tail = b""
        for token in reversed(ids):
            tail = raw[token] + tail
            if len(tail) >= _MAX_CHARACTER_BYTES:
                break
        self._decoder = _Utf8Decoder("replace")
        self._decode(tail, final=False)

    @property
    def num_pending(self) -> int:
        """Bytes, at most 3, of a character that is not complete."""
        return 0 if self._decoder is None else len(self._decoder.getstate()[0])

    def num_bytes(self, token: int) -> int:
        """How many bytes a token has, complete characters or not."""
        return len(self._texts.raw[token])

    def take(self, token: int) -> bytes:
        """The text that becomes complete with this token, in UTF-8."""
        if self._decoder is None:
            text = self._texts.whole[token]
            if text is None:
                self._decoder = _Utf8Decoder("replace")
                text = self._decode(self._texts.raw[token], final=False)
        else:
            text = self._decode(self._texts.raw[token], final=False)
        return self._strip_start(text) if self._strip else text

    def flush(self) -> bytes:
        """What is left at the end of the output: U+FFFD for an incomplete character, else nothing."""
        return b"" if self._decoder is None else self._strip_start(self._decode(b"", final=True))

    def _decode(self, raw: bytes, final: bool) -> bytes:
        decoder = self._decoder
        if decoder is None:
            return b""
        text = decoder.decode(raw, final).encode()
        if not decoder.getstate()[0]:
            self._decoder = None
        return text

    def _strip_start(self, text: bytes) -> bytes:
        stripped = 0
        while stripped < self._strip and text[stripped : stripped + 1] == b" ":
            stripped += 1
        # The first character that is not a space ends the start of the text.
        self._strip = self._strip - stripped if stripped == len(text) else 0
        return text[stripped:]


def detokenize(texts: TokenTexts, ids: Iterable[int]) -> str:
    """All at once."""
    detokenizer = Detokenizer(texts)
    return (b"".join([detokenizer.take(token) for token in ids]) + detokenizer.flush()).decode()


class _Decoder(msgspec.Struct, frozen=True):
    """A decoder as `tokenizer.json` describes it: the fields that any kind has, of which each uses some."""

    type: str
    decoders: list["_Decoder"] = []
    pattern: dict[str, str] = {}
    content: str = ""
    start: int = 0
    stop: int = 0


class _Definition(msgspec.Struct, frozen=True):
    """The part of `tokenizer.json` that says how tokens become text."""

    decoder: _Decoder | None = None


class TokenBytes:
    """How one tokenizer's tokens become bytes. Raises UnsupportedTokenizerError for a decoder of another family."""

    def __init__(self, definition: bytes) -> None:
        try:
            decoder = decode_json(definition, _Definition).decoder
        except WireError as error:
            raise UnsupportedTokenizerError(f"the tokenizer's definition cannot be read: {error}") from error
        steps = [] if decoder is None else decoder.decoders if decoder.type == "Sequence" else [decoder]
        if not steps:
            raise UnsupportedTokenizerError("the tokenizer has no decoder, so its tokens cannot become text")
        self.strip_left = 0
        self._to_bytes: Callable[[str], bytes] = str.encode
        fused = replaced = False
        for step in steps:
            match step:
                case _Decoder(type="ByteLevel") if len(steps) == 1:
                    self._to_bytes = _byte_level_bytes
                case _Decoder(type="Replace", content=" ", pattern={"String": "▁"}):
                    self._to_bytes, replaced = _piece_text, True
                case _Decoder(type="ByteFallback") if replaced:
                    self._to_bytes = _piece_bytes
                case _Decoder(type="Fuse"):
                    fused = True
                case _Decoder(type="Strip", content=" ", stop=0) if fused:
                    self.strip_left += step.start
                case _:
                    raise UnsupportedTokenizerError(
                        f"the tokenizer's decoder has the step {msgspec.json.encode(step).decode()}; supported are "
                        "ByteLevel alone, and Replace(▁), ByteFallback, Fuse and Strip at the start, in that order"
                    )

    def texts(self, tokens: dict[int, str], hidden: frozenset[int], vocab_size: int) -> TokenTexts:
        """Make a table of `vocab_size` ids from their written form; those in `hidden` have no bytes."""
        raw = [b""] * vocab_size
        whole: list[bytes | None] = [b""] * vocab_size
        for token, written in tokens.items():
            if token < vocab_size and token not in hidden:
                text = self._to_bytes(written)
                raw[token] = text
                whole[token] = text if _is_utf8(text) else None
        return TokenTexts(raw, whole, self.strip_left)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: a byte that prints in Latin-1 stands for itself, the others follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_LEVEL = _byte_level_alphabet()
BYTE_LEVEL_ALPHABET: Mapping[str, int] = _BYTE_LEVEL
"""How byte-level vocabularies write the 256 bytes."""


def _byte_level_bytes(written: str) -> bytes:
    try:
        return bytes([_BYTE_LEVEL[character] for character in written])
    except KeyError:
        # An added token, such as <｜end｜>, is written as it is.
        return written.encode()


def _piece_text(written: str) -> bytes:
    return written.replace(_UNDERLINE, " ").encode()


def _piece_bytes(written: str) -> bytes:
    byte = _BYTE_PIECE.fullmatch(written)
    return bytes([int(byte[1], 16)]) if byte else _piece_text(written)
