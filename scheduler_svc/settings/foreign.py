"""Environment variables that begin with PAGEWIRE_ and are not the server's.

Kubernetes puts variables for every Service of a namespace into each of its pods, and Docker's links do the same, so a
Service called pagewire, or pagewire-admin, makes a family of names that look like settings. A variable belongs to one
where its name and its value have the shape that the family gives it; anything else with the prefix is somebody's
mistake. It knows which settings exist no more than they do.
"""

import re
from collections.abc import Mapping

_OURS = re.compile(r"PAGEWIRE_(TEST_\w+|TARGET|API_KEY)", re.ASCII)
"""The tests' and the client's."""

_SERVICE = r"PAGEWIRE(?:_\w+)?"
_ADDRESS = r"[0-9A-Za-z:.\[\]-]+"
_URL = rf"(?:tcp|udp|sctp)://{_ADDRESS}"

_SHAPES = tuple(
    (re.compile(_SERVICE + suffix, re.ASCII), re.compile(value, re.ASCII | re.IGNORECASE))
    for suffix, value in (
        (r"_SERVICE_HOST", _ADDRESS),
        (r"_PORT", _URL),
        (r"_PORT_\d+_(?:TCP|UDP|SCTP)", _URL),
        (r"_PORT_\d+_(?:TCP|UDP|SCTP)_PROTO", r"tcp|udp|sctp"),
        (r"_PORT_\d+_(?:TCP|UDP|SCTP)_PORT", r"\d+"),
        (r"_PORT_\d+_(?:TCP|UDP|SCTP)_ADDR", _ADDRESS),
    )
)
"""What a name and its value look like that can be nothing else."""

_SERVICE_PORT = re.compile(rf"({_SERVICE}?)_SERVICE_PORT(?:_\w+)?", re.ASCII)
"""A number, as a setting's value may be: it needs its family's _SERVICE_HOST beside it."""

_LINK_NAME = re.compile(rf"({_SERVICE}?)_(?:NAME|ENV_\w+)", re.ASCII)
"""Docker's: any text. It needs its family's _PORT beside it."""


def is_foreign(variable: str, environ: Mapping[str, str]) -> bool:
    """Whether a variable is the client's, the tests', or one of a family that Kubernetes or Docker made."""
    if _OURS.fullmatch(variable):
        return True
    value = environ[variable]
    if any(name.fullmatch(variable) and shape.fullmatch(value) for name, shape in _SHAPES):
        return True
    if (port := _SERVICE_PORT.fullmatch(variable)) and value.isascii() and value.isdigit():
        return f"{port[1]}_SERVICE_HOST" in environ
    if link := _LINK_NAME.fullmatch(variable):
        return re.fullmatch(_URL, environ.get(f"{link[1]}_PORT", "")) is not None
    return False
