"""Tokenizer files: what a gateway needs to tokenize and to render chats as this server does, as one ZIP archive.

Of a model in Hugging Face layout they are its own files, byte by byte. Of others, such as a GGUF file, tokenizer.json
is the one that this server reads, and tokenizer_config.json is made from what the model's file says: the chat template
and the named special tokens. The archive is made once, off the event loop, and is the same at every start.
"""

import asyncio
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path

from pagewire.wire.model import ModelSpec

DEFINITION = "tokenizer.json"
CONFIG = "tokenizer_config.json"
_BESIDE = (
    CONFIG,
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
)
_MAX_FILE_BYTES = 16 * 1024 * 1024
"""Of those beside tokenizer.json: published ones have up to a few MB; a longer one is left out."""
_CHUNK_BYTES = 64 * 1024
_A_DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest that ZIP knows."""


class TokenizerArchive:
    """One model's archive."""

    def __init__(self, spec: ModelSpec, definition: str, threads: Executor) -> None:
        """`definition` is the path of tokenizer.json."""
        self._spec = spec
        self._definition = Path(definition)
        self._threads = threads
        self._making: asyncio.Future[tuple[bytes, str]] | None = None

    async def content(self) -> tuple[bytes, str]:
        """The archive and its SHA-256 in hexadecimal. Raises OSError; the next call tries again then."""
        if self._making is None or (self._making.done() and self._making.exception() is not None):
            self._making = asyncio.get_running_loop().run_in_executor(self._threads, self._make)
        return await asyncio.shield(self._making)

    def _make(self) -> tuple[bytes, str]:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in self._files():
                entry = zipfile.ZipInfo(name, _A_DATE)
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, content)
        made = packed.getvalue()
        return made, hashlib.sha256(made).hexdigest()

    def _files(self) -> Iterator[tuple[str, bytes]]:
        yield DEFINITION, self._definition.read_bytes()
        folder = self._definition.parent
        if not (folder / CONFIG).is_file():
            yield CONFIG, _described(self._spec)
            return
        for name in _BESIDE:
            file = folder / name
            if file.is_file() and file.stat().st_size <= _MAX_FILE_BYTES:
                yield name, file.read_bytes()


def _described(spec: ModelSpec) -> bytes:
    """A tokenizer_config.json, as Hugging Face has it."""
    config: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", **spec.special_tokens}
    if spec.tool_use_template is not None and spec.chat_template is not None:
        config["chat_template"] = [
            {"name": "default", "template": spec.chat_template},
            {"name": "tool_use", "template": spec.tool_use_template},
        ]
    elif spec.chat_template is not None:
        config["chat_template"] = spec.chat_template
    return json.dumps(config, ensure_ascii=False, sort_keys=True).encode()


def chunks(content: bytes) -> Iterator[bytes]:
    """The archive in pieces, at least one."""
    for start in range(0, len(content), _CHUNK_BYTES):
        yield content[start : start + _CHUNK_BYTES]
