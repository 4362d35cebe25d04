"""Setting fields: what is written beside a setting's type, and a setting as its sources and the help see it.

It knows how one value is checked and shown, not which settings there are.
"""

import functools
import reprlib
import types
import typing
from typing import Annotated, Any, Literal, NamedTuple, Union

import msgspec

from pagewire.scheduler_svc.startup_errors import SettingsError

MAX_INT32 = 2**31 - 1

Group = Literal["model", "network", "scheduling", "worker", "parallel", "operation"]
_GROUPS = typing.get_args(Group)


class Setting(NamedTuple):
    """Stands in the annotation of each setting."""

    group: Group
    help: str
    unit: str = ""
    limits: tuple[float, float] | None = None
    """Both belong to the range."""
    unset: str = ""
    """What happens where the value is none."""


class SettingField(NamedTuple):
    """One setting of a struct."""

    name: str
    base: type | tuple[str, ...]
    """str, int, float, bool, or the words of a choice."""
    optional: bool
    default: Any
    about: Setting

    @property
    def flag(self) -> str:
        """Its command-line flag."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return "PAGEWIRE_" + self.name.upper()

    @property
    def range_text(self) -> str:
        """What values it takes, in words; empty where any text will do."""
        if isinstance(self.base, tuple):
            return ", ".join(self.base[:-1]) + " or " + self.base[-1]
        if self.base is bool:
            return "true or false"
        if self.about.limits is None:
            return ""
        low, high = map(_number, self.about.limits)
        return f"{low} to {high} {self.about.unit}".rstrip()

    def check(self, value: object) -> None:
        """Raise SettingsError unless the value has the setting's type and lies in its range."""
        if value is None and self.optional:
            return
        if isinstance(self.base, tuple):
            fits = value in self.base
        elif self.base is float:
            fits = isinstance(value, int | float) and not isinstance(value, bool)
        elif self.base is int:
            fits = isinstance(value, int) and not isinstance(value, bool)
        else:
            fits = isinstance(value, self.base)
        if fits and isinstance(value, str) and not _is_text(value):
            raise SettingsError(f"{self.name} = {value!r} must be text in UTF-8")
        if fits and isinstance(value, int | float) and self.about.limits is not None:
            low, high = self.about.limits
            fits = low <= value <= high
        if not fits:
            kind = {str: "text", int: "a whole number", float: "a number"}.get(typing.cast(type, self.base), "")
            wanted = " of ".join(part for part in (kind, self.range_text) if part)
            raise SettingsError(f"{self.name} = {_shown(value)} must be {wanted}")


@functools.cache
def setting_fields(settings: type[msgspec.Struct]) -> dict[str, SettingField]:
    """Every setting of a struct by name: a group after the other, each in the order of declaration."""
    hints = typing.get_type_hints(settings, include_extras=True)
    found = [_describe(field, hints[field.name]) for field in msgspec.structs.fields(settings)]
    return {field.name: field for field in sorted(found, key=lambda field: _GROUPS.index(field.about.group))}


def _describe(field: msgspec.structs.FieldInfo, hint: Any) -> SettingField:
    assert typing.get_origin(hint) is Annotated, f"{field.name} lacks its Setting"
    inner, about = hint.__origin__, hint.__metadata__[0]
    optional = False
    if typing.get_origin(inner) in (Union, types.UnionType):
        (inner,) = (part for part in typing.get_args(inner) if part is not types.NoneType)
        optional = True
    base = typing.get_args(inner) if typing.get_origin(inner) is Literal else inner
    return SettingField(field.name, base, optional, field.default, about)


def _shown(value: object) -> str:
    """As in Python, as far as it can be shown: a table may be nested too deeply, and a number too long."""
    try:
        return reprlib.repr(value) if isinstance(value, dict | list) else repr(value)
    except (RecursionError, ValueError):
        return f"a {type(value).__name__}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _is_text(value: str) -> bool:
    """False where a command line or the environment held bytes that are no UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
