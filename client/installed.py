"""Which of this distribution's extras are installed, by its own metadata; nothing is imported to find out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import metadata

DISTRIBUTION = "pagewire"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EXTRA = re.compile(r"""extra\s*==\s*["']([\w-]+)["']""")


def version(distribution: str) -> str | None:
    """The installed version, none where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def requirements(extra: str) -> Mapping[str, str | None]:
    """The distributions that an extra needs ("" for none) and their installed versions, none where missing."""
    found: dict[str, str | None] = {}
    for line in metadata.requires(DISTRIBUTION) or ():
        name, of = _NAME.match(line), _EXTRA.search(line)
        if name is not None and (of.group(1) if of else "") == extra:
            found[name.group()] = version(name.group())
    return found


def missing(extra: str) -> list[str]:
    """What an extra needs and is not here."""
    return [name for name, installed in requirements(extra).items() if installed is None]
