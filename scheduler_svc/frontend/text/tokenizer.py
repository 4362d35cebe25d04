"""Tokenizer: text to token ids and back, with the model's own `tokenizer.json`.

The library is `tokenizers` alone. transformers' `AutoTokenizer` gives the same ids, but importing it costs 1.7 s and
246 MB and pulls in torch; tokenizers and jinja2 together cost 0.05 s and 20 MB (measured on 2 Zen 5 cores, Python 3.11,
transformers 5.23), and there is one such process per frontend. What AutoTokenizer adds stands in the definition
already, or comes in the ModelSpec: chat templates and named special tokens.

Invariant: no text, however long, holds the event loop. Short texts are encoded in place (about 0.2 µs a character);
longer ones on a thread, by `encode_batch_fast`, which lets go of the interpreter lock where `encode` keeps it (a text
of 1.2 MB: 0.8 s without any other thread running, against a longest gap of 2 ms). What waits for those threads is
bounded, and they are given to clients in turn. A long text has one thread at most, so that short ones, which take
milliseconds, never wait for its seconds; nor is there ever more than one that takes the 170 bytes of memory which the
library needs for each of its own.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import msgspec
import tokenizers

from pagewire.scheduler_svc.endings import is_ending
from pagewire.scheduler_svc.frontend.errors import Exhausted, ResourceExhausted
from pagewire.scheduler_svc.frontend.fairness import FairTurns
from pagewire.scheduler_svc.frontend.text.detokenizer import (
    BYTE_LEVEL_ALPHABET,
    Detokenizer,
    TokenBytes,
    TokenTexts,
    UnsupportedTokenizerError,
    detokenize,
)
from pagewire.scheduler_svc.frontend.text.text_bound import TextBound
from pagewire.wire.codec import WireError, decode_json
from pagewire.wire.model import ModelSpec

NUM_THREADS = 2
LONG_CHARACTERS = 64 * 1024
"""From here on a text is long: about 70 ms of work."""
_INLINE_CHARACTERS = 1000
_INLINE_IDS = 1000
_MAX_WAITING_CHARACTERS = 32 * 1024 * 1024
"""Of all texts on the threads or waiting for them: about ten seconds of work."""
_RETRY_S = 1.0
_PARTS = ("truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder")
_EMPTY_MODEL = {"type": "BPE", "vocab": {}, "merges": []}

_Result = TypeVar("_Result")


def _read(definition: bytes) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_buffer(definition)
    except BaseException as error:  # the library raises nothing more particular, and panics at some definitions
        if is_ending(error):
            raise
        raise UnsupportedTokenizerError(str(error)) from error


def faulty_part(definition: bytes) -> str:
    """Which key of a tokenizer.json it is that the library refuses; it says a column, which of a file of megabytes in
    one line tells nobody anything. Empty where no part alone is at fault."""
    try:
        parts = decode_json(definition, dict[str, msgspec.Raw])
        model = decode_json(bytes(parts.get("model", b"{}")), dict[str, msgspec.Raw])
    except WireError:
        return ""

    def is_read(**keys: object) -> bool:
        try:
            _read(msgspec.json.encode({"version": "1.0", "added_tokens": [], "model": _EMPTY_MODEL} | keys))
        except UnsupportedTokenizerError:
            return False
        return True

    for name in _PARTS:
        if name in parts and not is_read(**{name: parts[name]}):
            return name
    if is_read(model=model):
        return ""
    if is_read(model=model | {"merges": []}):
        return "model.merges"
    return "model.vocab" if is_read(model=model | {"merges": [], "vocab": {}}) else "model"


class TextTokenizer:
    """One model's tokenizer. Raises UnsupportedTokenizerError or OSError when it cannot be used."""

    def __init__(self, tokenizer_file: str, spec: ModelSpec, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self._turns = FairTurns(NUM_THREADS)
        self._long_turns = FairTurns(1)
        self._waiting_characters = 0
        with open(tokenizer_file, "rb") as file:
            definition = file.read()
        try:
            self._tokenizer = _read(definition)
        except UnsupportedTokenizerError as error:
            part = faulty_part(definition)
            raise UnsupportedTokenizerError(
                f"the tokenizer in {tokenizer_file} cannot be read{part and f', because of its {part}'}: {error}"
            ) from error
        # A definition may carry the truncation of its training; a prompt is never cut silently.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = spec.split_special_tokens

        added = self._tokenizer.get_added_tokens_decoder()
        special = frozenset(token for token, content in added.items() if content.special)
        self.bound = TextBound(definition, added.values(), BYTE_LEVEL_ALPHABET)
        written = {token: text for text, token in self._tokenizer.get_vocab(with_added_tokens=True).items()}
        # The library decodes an added token as the text that it is matched in: as its normalizer writes it, where it
        # is matched behind that. It then forgets that such a token is special; here it stays so.
        written |= {token: self._tokenizer.id_to_token(token) or content.content for token, content in added.items()}
        token_bytes = TokenBytes(definition)
        vocab_size = spec.decoder.vocab_size
        self._texts_without_special = token_bytes.texts(written, special, vocab_size)
        self._texts_with_special = token_bytes.texts(written, frozenset(), vocab_size)
        self._special = {written[token]: token for token in special if token < vocab_size}
        self._texts_with_some: dict[frozenset[int], TokenTexts] = {}
        """Without special tokens but these; as many as there are formats of chats."""

    async def encode(self, text: str, *, add_special_tokens: bool, client: str = "") -> list[int]:
        """Tokenize; special tokens written in the text are recognized. `add_special_tokens` also puts in front and
        behind what the model's tokenizer does. Threads are shared fairly between clients. Raises ResourceExhausted when
        too much text waits already."""
        if len(text) <= _INLINE_CHARACTERS:
            return self._encode(text, add_special_tokens)
        waiting = self._waiting_characters
        if waiting and waiting + len(text) > _MAX_WAITING_CHARACTERS:
            raise ResourceExhausted(
                f"{waiting} characters wait to be tokenized; with these {len(text)} they are over the limit of "
                f"{_MAX_WAITING_CHARACTERS}",
                _RETRY_S,
                Exhausted.TEXT_WORK,
            )
        self._waiting_characters += len(text)
        try:
            turns = self._turns if len(text) < LONG_CHARACTERS else self._long_turns
            return await self._on_thread(turns, client, lambda: self._encode(text, add_special_tokens))
        finally:
            self._waiting_characters -= len(text)

    async def encode_each(self, texts: Sequence[str], *, client: str = "") -> list[list[int]]:
        """Tokenize short texts, each by itself and without special tokens, on a thread: hundreds of them would hold the
        event loop."""
        return await self._on_thread(self._turns, client, lambda: [self._encode(text, False) for text in texts])

    async def _on_thread(self, turns: FairTurns, client: str, work: Callable[[], _Result]) -> _Result:
        await turns.take(client)
        try:
            working = asyncio.get_running_loop().run_in_executor(self._threads, work)
        except BaseException:
            turns.free()
            raise

        def done(work: "asyncio.Future[_Result]") -> None:
            turns.free()
            if not work.cancelled():
                work.exception()  # its caller may have gone away

        # A thread cannot be stopped: where the caller goes away, the place stays taken for as long as it works.
        working.add_done_callback(done)
        return await asyncio.shield(working)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def _texts(self, skip_special_tokens: bool, shown: frozenset[str] = frozenset()) -> TokenTexts:
        if not skip_special_tokens:
            return self._texts_with_special
        ids = frozenset(self._special[text] for text in shown if text in self._special)
        if not ids:
            return self._texts_without_special
        if ids not in self._texts_with_some:
            self._texts_with_some[ids] = self._texts_without_special.showing(ids, self._texts_with_special)
        return self._texts_with_some[ids]

    def detokenizer(
        self, *, skip_special_tokens: bool, prompt: Sequence[int], shown: frozenset[str] = frozenset()
    ) -> Detokenizer:
        """For one output of the prompt with these ids. `shown`: special tokens that are not skipped."""
        return Detokenizer(self._texts(skip_special_tokens, shown), after=prompt)

    def special_ids(self, markers: frozenset[str]) -> frozenset[int]:
        """Special tokens but these."""
        return frozenset(token for text, token in self._special.items() if text not in markers)

    def bytes_of(self, token: int) -> bytes:
        """A token's own bytes, which need not be valid UTF-8; none of an id that the tokenizer lacks."""
        return self._texts_with_special.raw[token]

    def texts(self, ids: Sequence[int], *, skip_special_tokens: bool) -> list[bytes]:
        """What each of these tokens, from a text's first on, adds to it."""
        detokenizer = Detokenizer(self._texts(skip_special_tokens))
        return [detokenizer.take(token) for token in ids]

    async def decode(self, ids: Sequence[int], *, skip_special_tokens: bool, client: str = "") -> str:
        """All at once; every id must be less than the model's vocabulary size."""
        texts = self._texts(skip_special_tokens)
        if len(ids) <= _INLINE_IDS:
            return detokenize(texts, ids)
        return await self._on_thread(self._turns, client, lambda: detokenize(texts, ids))
