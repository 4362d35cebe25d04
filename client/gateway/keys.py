"""Keys: what a body calls the fields of the contract, so that errors speak of what was sent."""

from __future__ import annotations

import re

from pagewire.client.errors import InvalidRequest

_FIELD = re.compile(r"\b(?:generation|format)\.[A-Za-z_][\w.\[\]]*[\w\]]")
_CANDIDATES = "generation.output.num_candidates"
_NAMES = (
    ("generation.sampling.", ""),
    ("generation.stopping.stop_strings", "stop"),
    ("generation.stopping.include_stop", "include_stop_str_in_output"),
    ("generation.stopping.", ""),
    ("generation.output.", ""),
    ("generation.prompt.chat.template_arguments", "chat_template_kwargs"),
    ("generation.prompt.chat.format", "chat_format"),
    ("generation.prompt.chat.", ""),
    ("generation.prompt.token_ids.ids", "prompt"),
    ("generation.prompt.text", "prompt"),
    ("generation.prompt", "prompt"),
    ("generation.constraint.json_schema", "response_format.json_schema.schema"),
    ("generation.constraint.json_object", "response_format"),
    ("generation.constraint", "response_format"),
    ("generation.", ""),
    ("format.", "chat_format."),
)
"""The beginnings of fields' paths, and what stands for them in a body; the first that fits."""
_IN_FUNCTION = re.compile(r"(tool_calls\[\d+\]|tools\[\d+\])\.(name|description|parameters|arguments)\b")


def key_of(field: str, *, is_chat: bool) -> str:
    """The key for a field's path, which may go on behind it; the path itself where the body has no such key."""
    if field.startswith(_CANDIDATES):
        return ("top_logprobs" if is_chat else "logprobs") + field[len(_CANDIDATES) :]
    for beginning, key in _NAMES:
        if field.startswith(beginning):
            return _IN_FUNCTION.sub(r"\1.function.\2", key + field[len(beginning) :])
    return field


def by_keys(error: InvalidRequest, *, is_chat: bool) -> InvalidRequest:
    """The same error, in whose message and field every field of the contract is a key of the body."""
    message = _FIELD.sub(lambda found: key_of(found[0], is_chat=is_chat), str(error))
    return type(error)(message, field=key_of(error.field, is_chat=is_chat))
