"""Reads text files that came with a model: bounded in size, UTF-8 alone, and one kind of error whatever is wrong."""

import codecs
from pathlib import Path

from pagewire.scheduler_svc.models.json_file import read_bounded
from pagewire.scheduler_svc.startup_errors import ModelError


def read_text(file: Path) -> str:
    """The file's text, with line ends as `\\n`. Raises ModelError naming the file, and OSError."""
    content = read_bounded(file)
    if content.startswith(codecs.BOM_UTF8):
        raise ModelError(f"{file} starts with a byte-order mark, which would stand in every prompt; save it without")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ModelError(f"{file} is not UTF-8: {error}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")
