"""Tokenizer files of a Hugging Face directory: one definition of the tokenizer, chat templates, named special tokens.

What `AutoTokenizer.from_pretrained` of transformers 5 makes of the files is written down as one tokenizer.json, which
frontends give to the `tokenizers` library. Where the directory's own tokenizer.json says all of it, as those of most
published models do, that file is it; else one is made from it in the cache folder. Keys that transformers gives no
effect on ids and text have none here.

The tokenizer itself is not built here.
"""

import codecs
import hashlib
import logging
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from pagewire.scheduler_svc.models.cache import make_cache_folder, write_atomically, writing_cache
from pagewire.scheduler_svc.models.chat_templates import ChatTemplates, read_templates
from pagewire.scheduler_svc.models.files import decode_json, decode_object, read_bounded, sha256_of
from pagewire.scheduler_svc.models.hf_added_tokens import AddedToken, AddedVocabulary, TokenSources, collect_tokens
from pagewire.scheduler_svc.models.hf_tokenizer_class import (
    TokenizerClass,
    class_of,
    is_same_part,
    tokenizer_class,
)
from pagewire.scheduler_svc.startup_errors import ModelError

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_OTHER_TOKENIZERS = ("tokenizer.model", "vocab.json", "tekken.json", "spiece.model", "tiktoken.model")
"""Files of tokenizers that only transformers' own code converts to tokenizer.json."""

_MAX_DEFINITION_BYTES = 256 * 1024 * 1024
"""The largest that are published have 35 MB."""

_FORCED_CLEAN_UP = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"

_NEUTRAL = {"fix_mistral_regex": False, _FORCED_CLEAN_UP: False, "init_inputs": []}
"""Keys of tokenizer_config.json that change ids or text and are not served, with the value that changes nothing."""


class _FileToken(msgspec.Struct):
    content: str
    id: int
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False

    def added(self) -> AddedToken:
        return AddedToken(
            self.content, self.single_word, self.lstrip, self.rstrip, normalized=self.normalized, special=self.special
        )


class _Model(msgspec.Struct):
    type: str | None = None
    vocab: dict[str, int] | list[Any] = {}
    dropout: float | None = None


class _TokenizerJson(msgspec.Struct):
    model: _Model
    added_tokens: list[_FileToken] = []
    post_processor: msgspec.Raw = msgspec.Raw(b"null")


class HfTokenizer(msgspec.Struct, frozen=True, kw_only=True):
    """What a directory says about text; no file where it says nothing."""

    file: str | None
    digest: str = ""
    chat_templates: ChatTemplates = ChatTemplates()
    special_tokens: dict[str, str] = {}
    split_special_tokens: bool = False
    eos_token_id: int | None = None
    """Of the tokenizer's eos_token, for models whose configuration names none."""


class _Files:
    """The directory's files about its tokenizer, each read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.definition_file = folder / "tokenizer.json"
        content = read_bounded(self.definition_file, _MAX_DEFINITION_BYTES)
        self.definition = content.removeprefix(codecs.BOM_UTF8)
        self.is_marked = self.definition != content
        """Whether it starts with a byte-order mark, with which the `tokenizers` library does not read it."""
        self.tokenizer = decode_json(self.definition, _TokenizerJson, str(self.definition_file))
        self.config = self._table("tokenizer_config.json", dict[str, Any]) or {}
        self.special_tokens_map = self._table("special_tokens_map.json", dict[str, Any])
        self.added_tokens = self._table("added_tokens.json", dict[str, int])

    def _table(self, name: str, kind: type[_T]) -> _T | None:
        file = self.folder / name
        return decode_json(read_bounded(file), kind, str(file)) if file.is_file() else None


def read_tokenizer(folder: Path, family: str, vocab_size: int, cache_dir: Path) -> HfTokenizer:
    """Read the directory's tokenizer files. `family` is the model's architecture, which decides how transformers reads
    them; `vocab_size` is the embedding's. Raises ModelError for a tokenizer in another format than tokenizer.json and
    for what is not served, and OSError."""
    if not (folder / "tokenizer.json").is_file():
        for other in _OTHER_TOKENIZERS:
            if (folder / other).is_file():
                raise ModelError(
                    f"{folder} has {other} but no tokenizer.json; transformers' AutoTokenizer.from_pretrained(...) "
                    "and save_pretrained(...) write one"
                )
        _log.warning("%s has no tokenizer: prompts are token ids alone", folder)
        return HfTokenizer(file=None)
    files = _Files(folder)
    _check_config(files)
    known = _known_class(files, family)
    own = _own_vocabulary(files, known)
    before = {token.content for _, token in own.entries()}
    sources = TokenSources(
        config=files.config,
        special_tokens_map=files.special_tokens_map,
        added_tokens=files.added_tokens,
        file_tokens={token.id: token.added() for token in files.tokenizer.added_tokens},
        class_tokens={} if known is None else known.tokens,
    )
    try:
        tokens = collect_tokens(sources, before)
    except ValueError as error:
        raise ModelError(f"{folder / 'tokenizer_config.json'}: {error}") from error
    for sentence in tokens.overruled:
        _log.warning("%s: %s", folder, sentence)
    own.add(tokens.added)
    if known is not None and known.named_tokens_are_plain:
        plain = [AddedToken(text, special=True) for text in dict.fromkeys(tokens.named.values())]
        own.add(plain + [AddedToken(token.content, special=True) for token in tokens.extra])
    _check_ids(files, own, tokens.claimed, vocab_size)
    changes = _changes(files, known, own)
    content = files.definition if not changes else _changed(files, changes)
    return HfTokenizer(
        file=str(_keep(content, cache_dir) if changes or files.is_marked else files.definition_file),
        digest=sha256_of(content),
        chat_templates=read_templates(folder, files.config.get("chat_template"), _log.warning),
        special_tokens=tokens.named,
        split_special_tokens=bool(files.config.get("split_special_tokens")),
        eos_token_id=own.id_of(tokens.named["eos_token"]) if "eos_token" in tokens.named else None,
    )


def _check_config(files: _Files) -> None:
    """Refuse what changes ids or text and is not served, and say what transformers passes over."""
    config, origin = files.config, files.folder / "tokenizer_config.json"
    for key, neutral in _NEUTRAL.items():
        if config.get(key) not in (None, neutral):
            raise ModelError(f"{origin}: {key} = {config[key]!r} is not served")
    versions = config.get("fast_tokenizer_files")
    if versions not in (None, [], ["tokenizer.json"]):
        raise ModelError(f"{origin}: fast_tokenizer_files = {versions!r} is not served; tokenizer.json alone is")
    model = files.tokenizer.model
    if config.get("clean_up_tokenization_spaces") and model.type not in (None, "BPE"):
        raise ModelError(
            f"{origin}: clean_up_tokenization_spaces = true is not served for a tokenizer of type {model.type}"
        )
    if model.dropout:
        raise ModelError(f"{files.definition_file}: model.dropout = {model.dropout} is not served: ids would vary")
    if "auto_map" in config:
        _log.warning("%s: auto_map names code of the model's own, which is not run", origin)
    post_processor = bytes(files.tokenizer.post_processor)
    for key in ("bos_token", "eos_token"):
        wanted = config.get(f"add_{key}")
        text = config.get(key)
        text = text.get("content") if isinstance(text, dict) else text
        if wanted is None or not isinstance(text, str):
            continue
        adds = msgspec.json.encode(text) in post_processor
        if bool(wanted) != adds:
            _log.warning(
                "%s: add_%s = %s is not followed, as by transformers: tokenizer.json's post_processor counts, which "
                "%s it",
                origin,
                key,
                str(bool(wanted)).lower(),
                "adds" if adds else "does not add",
            )


def _known_class(files: _Files, family: str) -> TokenizerClass | None:
    config_file = files.folder / "config.json"
    model_class = decode_object(read_bounded(config_file), str(config_file)).get("tokenizer_class")
    name = class_of(family, files.config, model_class, files.definition)
    if name is None:
        return None
    known = tokenizer_class(name, files.config)
    if known is None:
        _log.warning("%s: tokenizer_class = %s is not known; tokenizer.json is taken as it is", files.folder, name)
    elif files.tokenizer.model.type not in (None, "BPE"):
        raise ModelError(
            f"{files.definition_file}: a model of type {files.tokenizer.model.type} is not served with {name}, which "
            "is BPE"
        )
    return known


def _own_vocabulary(files: _Files, known: TokenizerClass | None) -> AddedVocabulary:
    """What the tokenizer has before the other files are looked at. A class that builds its own takes no added tokens
    over; they come by the files' rules."""
    vocabulary = files.tokenizer.model.vocab
    if isinstance(vocabulary, list):
        vocabulary = {entry[0]: index for index, entry in enumerate(vocabulary) if isinstance(entry, list) and entry}
    own = AddedVocabulary(vocabulary)
    if known is None:
        own.add([token.added() for token in files.tokenizer.added_tokens])
    return own


def _check_ids(files: _Files, own: AddedVocabulary, claimed: dict[int, str], vocab_size: int) -> None:
    """Say where a token gets another id than a file claims, or one that the model does not have."""
    said = {token.id: token.content for token in files.tokenizer.added_tokens} | claimed
    for index, text in said.items():
        given = own.id_of(text)
        if given is not None and given != index:
            _log.warning(
                "%s: token %r gets id %d, as in transformers, though a file says %d", files.folder, text, given, index
            )
    beyond = [(text, index) for index, token in own.entries() if index >= vocab_size for text in (token.content,)]
    if beyond:
        _log.warning(
            "%s: %d tokens have ids beyond the model's vocab_size = %d, and prompts with them are refused: %s",
            files.folder,
            len(beyond),
            vocab_size,
            ", ".join(f"{text!r} = {index}" for text, index in beyond[:5]),
        )


def _changes(files: _Files, known: TokenizerClass | None, own: AddedVocabulary) -> dict[str, Any]:
    """Parts of tokenizer.json that must differ from the file's."""
    changes: dict[str, Any] = {}
    file_vocabulary = _own_vocabulary(files, None)
    if own.entries() != file_vocabulary.entries():
        changes["added_tokens"] = [{"id": index, **msgspec.structs.asdict(token)} for index, token in own.entries()]
    if known is None:
        return changes
    table = _top_level(files)
    for name, part in known.parts.items():
        theirs = msgspec.json.decode(table.get(name, b"null"))
        if not is_same_part(name, part, theirs):
            changes[name] = part
    model = msgspec.json.decode(table["model"], type=dict[str, msgspec.Raw])
    for name, option in known.bpe.items():
        if not is_same_part(name, option, msgspec.json.decode(model.get(name, b"null"))):
            model[name] = msgspec.Raw(msgspec.json.encode(option))
            changes["model"] = model
    if changes.keys() - {"added_tokens"}:
        _log.warning(
            "%s: %s of tokenizer.json %s replaced by what tokenizer_class = %s sets, as in transformers",
            files.folder,
            ", ".join(sorted(changes.keys() - {"added_tokens"})),
            "is" if len(changes.keys() - {"added_tokens"}) == 1 else "are",
            known.name,
        )
    return changes


def _top_level(files: _Files) -> dict[str, msgspec.Raw]:
    return decode_json(files.definition, dict[str, msgspec.Raw], str(files.definition_file))


def _changed(files: _Files, changes: dict[str, Any]) -> bytes:
    return msgspec.json.encode(_top_level(files) | changes)


def _keep(content: bytes, cache_dir: Path) -> Path:
    folder = make_cache_folder(cache_dir / "tokenizers" / hashlib.sha256(content).hexdigest()[:32])
    file = folder / "tokenizer.json"
    with writing_cache(folder):
        if not file.is_file() or file.read_bytes() != content:
            write_atomically(file, content)
    return file
