"""The chat templates of a model's files: one for every conversation, and one for those with tools where they differ.

The rules are those of transformers' `_from_pretrained` and `get_chat_template`: chat_template.jinja and the files in
additional_chat_templates/ take the place of the configuration's templates, all of them; with tools, the template named
tool_use is taken before default. It renders nothing, and does not know whether a template compiles.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from pagewire.scheduler_svc.models.files import decode_json, read_bounded, read_text
from pagewire.scheduler_svc.startup_errors import ModelError

Warn = Callable[[str], None]

_FILE = "chat_template.jinja"
_FOLDER = "additional_chat_templates"
_PROCESSOR_FILE = "chat_template.json"


class ChatTemplates(msgspec.Struct, frozen=True):
    """Jinja sources."""

    default: str | None = None
    tool_use: str | None = None
    origin: str = ""
    """The files that they are of, and the key; for whoever finds that one does not compile."""


class _Named(msgspec.Struct):
    name: str
    template: str


class _ProcessorFile(msgspec.Struct):
    chat_template: str | list[_Named]


def read_templates(folder: Path, in_config: Any, warn: Warn) -> ChatTemplates:
    """Of a Hugging Face directory; `in_config` is the value of chat_template in its tokenizer_config.json. What is not
    used is told to `warn`.

    Raises ModelError naming the file that is no template, and OSError.
    """
    files = {}
    if (folder / _FILE).is_file():
        files["default"] = folder / _FILE
    if (folder / _FOLDER).is_dir():
        files |= {file.name.removesuffix(".jinja"): file for file in sorted((folder / _FOLDER).glob("*.jinja"))}
    named = {name: read_text(file) for name, file in files.items()}
    try:
        of_config = _by_name(msgspec.convert(in_config, str | list[_Named] | None))
    except msgspec.ValidationError as error:
        raise ModelError(f"{folder / 'tokenizer_config.json'}: chat_template: {error}") from error
    of_processor = _of_processor(folder / _PROCESSOR_FILE)
    where = " and ".join(str(files[name]) for name in ("default", "tool_use") if name in files)
    if named:
        _say_overruled(folder, "tokenizer_config.json", of_config, named, warn)
        _say_overruled(folder, _PROCESSOR_FILE, of_processor, named, warn)
    elif of_config:
        named, where = of_config, f"{folder / 'tokenizer_config.json'}: chat_template"
        _say_overruled(folder, _PROCESSOR_FILE, of_processor, named, warn)
    else:
        # transformers reads this file for processors alone, which stand before a tokenizer.
        named, where = of_processor, str(folder / _PROCESSOR_FILE)
    return choose(named, str(folder), where, warn)


def choose(named: Mapping[str, str], origin: str, where: str, warn: Warn) -> ChatTemplates:
    """The templates that a conversation can get, of all those that `origin` has by name; `where` they stand in it."""
    templates = ChatTemplates(named.get("default"), named.get("tool_use"), where)
    others = sorted(named.keys() - {"default", "tool_use"})
    if others:
        warn(f"{origin}: chat templates {', '.join(others)} are not used; default and tool_use can be")
    if templates.default is None and named:
        refused = "chats without tools are refused" if templates.tool_use is not None else "chats are refused"
        warn(f"{origin} has no chat template named default: {refused}")
    return templates


def _of_processor(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    return _by_name(decode_json(read_bounded(file), _ProcessorFile, str(file)).chat_template)


def _by_name(value: str | list[_Named] | None) -> dict[str, str]:
    if isinstance(value, list):
        return {entry.name: entry.template for entry in value}
    return {} if value is None else {"default": value}


def _say_overruled(folder: Path, file: str, said: Mapping[str, str], counts: Mapping[str, str], warn: Warn) -> None:
    if said and any(counts.get(name) != template for name, template in said.items()):
        warn(f"{folder}: the chat templates of {file} are not used: other files' take their place")
