"""Tokenizer files of a Hugging Face directory: which tokenizer.json, chat template and named special tokens it has.

The tokenizer itself is not built here: frontends give tokenizer.json to the `tokenizers` library as it is.
"""

import logging
from pathlib import Path
from typing import Any

import msgspec

from pagewire.scheduler_svc.models.digest import sha256_of
from pagewire.scheduler_svc.startup_errors import ModelError

_log = logging.getLogger(__name__)

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_OTHER_TOKENIZERS = ("tokenizer.model", "vocab.json", "tekken.json", "spiece.model")
"""Files of tokenizers that only transformers' own code converts to tokenizer.json."""


class _AddedToken(msgspec.Struct):
    content: str
    id: int = -1


class _TokenizerJson(msgspec.Struct):
    added_tokens: list[_AddedToken] = []
    post_processor: msgspec.Raw = msgspec.Raw(b"null")


class _NamedTemplate(msgspec.Struct):
    name: str
    template: str


class _TokenizerConfig(msgspec.Struct):
    chat_template: str | list[_NamedTemplate] | None = None
    add_bos_token: bool | None = None
    extra_special_tokens: dict[str, Any] | list[Any] = {}


class HfTokenizer(msgspec.Struct, frozen=True, kw_only=True):
    """What a directory says about text; no file where it says nothing."""

    file: str | None
    digest: str = ""
    add_bos: bool = False
    chat_template: str | None = None
    special_tokens: dict[str, str] = {}
    eos_token_id: int | None = None
    """Of the tokenizer's eos_token, for models whose configuration names none."""


def read_tokenizer(folder: Path) -> HfTokenizer:
    """Read the directory's tokenizer files. Raises ModelError for a tokenizer in another format than tokenizer.json."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        for other in _OTHER_TOKENIZERS:
            if (folder / other).is_file():
                raise ModelError(
                    f"{folder} has {other} but no tokenizer.json; transformers' AutoTokenizer.from_pretrained(...) "
                    "and save_pretrained(...) write one"
                )
        _log.warning("%s has no tokenizer: prompts are token ids alone", folder)
        return HfTokenizer(file=None)
    content = file.read_bytes()
    definition = _decode(content, _TokenizerJson, file)
    config_file = folder / "tokenizer_config.json"
    raw = config_file.read_bytes() if config_file.is_file() else b"{}"
    config = _decode(raw, _TokenizerConfig, config_file)
    special_tokens = _special_tokens(folder, raw, config)
    ids = {token.content: token.id for token in definition.added_tokens}
    bos = special_tokens.get("bos_token")
    return HfTokenizer(
        file=str(file),
        digest=sha256_of(content),
        # Some files leave the beginning-of-sequence token to transformers' Python classes, which follow this key.
        add_bos=bool(config.add_bos_token) and bos is not None and _quoted(bos) not in bytes(definition.post_processor),
        chat_template=_chat_template(folder, config),
        special_tokens=special_tokens,
        eos_token_id=ids.get(special_tokens.get("eos_token", "")),
    )


def _special_tokens(folder: Path, config: bytes, typed: _TokenizerConfig) -> dict[str, str]:
    """Named tokens from special_tokens_map.json and tokenizer_config.json, the latter winning."""
    found: dict[str, str] = {}
    map_file = folder / "special_tokens_map.json"
    for content, origin in (
        (map_file.read_bytes() if map_file.is_file() else b"{}", map_file),
        (config, folder / "tokenizer_config.json"),
    ):
        table = _decode(content, dict[str, Any], origin)
        for name in _NAMED_TOKENS:
            text = _token_text(table.get(name))
            if text is not None:
                found[name] = text
    if isinstance(typed.extra_special_tokens, dict):
        for name, value in typed.extra_special_tokens.items():
            if (text := _token_text(value)) is not None:
                found[name] = text
    return found


def _token_text(value: object) -> str | None:
    """A token stands as text, or as an object with its `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _chat_template(folder: Path, config: _TokenizerConfig) -> str | None:
    """chat_template.jinja wins over the key; of several named templates, `default`."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ModelError(f"{file} is not UTF-8: {error}") from error
    if isinstance(config.chat_template, list):
        return next((named.template for named in config.chat_template if named.name == "default"), None)
    return config.chat_template


def _quoted(text: str) -> bytes:
    return msgspec.json.encode(text)


def _decode(content: bytes, kind: Any, origin: Path) -> Any:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ModelError(f"{origin}: {error}") from error
