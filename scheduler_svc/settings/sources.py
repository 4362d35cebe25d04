"""Sources of settings: flags, then the environment, then a TOML file, then the default, which may be
the device's own.

Everything here follows from the struct `Settings`: its fields name the flags (`--max-num-seqs`), the variables
(`PAGEWIRE_MAX_NUM_SEQS`) and the keys of the file (`max_num_seqs`). An unknown variable or key is an error that names
it. It opens one file, the configuration, and starts nothing.

Some variables that begin with PAGEWIRE_ are not the server's. Kubernetes puts variables for every Service of a
namespace into each of its pods, and Docker's links do the same, so a Service called pagewire, or pagewire-admin, makes
a family of names that look like settings. A variable belongs to one where its name and its value have the shape that
the family gives it; anything else with the prefix is somebody's mistake.
"""

import argparse
import difflib
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pagewire.scheduler_svc.settings.auto_device import AutoDevice
from pagewire.scheduler_svc.settings.checks import check_agreement
from pagewire.scheduler_svc.settings.device import DEVICE_DEFAULTS
from pagewire.scheduler_svc.settings.field import SettingField, setting_fields
from pagewire.scheduler_svc.settings.settings import Settings
from pagewire.scheduler_svc.startup_errors import SettingsError
from pagewire.wire.codec import WireError, decode_toml

CONFIG_VARIABLE = "PAGEWIRE_CONFIG"
"""Names the TOML file where --config does not."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE | re.ASCII)
_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})

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


class Resolved(NamedTuple):
    """The settings, and where each came from."""

    settings: Settings
    origins: dict[str, str]


DEFAULT = "default"
"""Where a value comes from that nothing else gave."""
WORKER_GROUPS = frozenset({"model", "worker", "parallel"})
WORKER_SETTINGS = frozenset(
    {
        "curve_dir",
        "max_num_seqs",
        "max_num_batched_tokens",
        "block_size",
        "kv_cache_bytes",
        "runtime_dir",
        "log_level",
        "log_format",
    }
)
"""Groups of settings, and others one by one, that mean something to a rank on a host of its own."""


def add_flags(parser: argparse.ArgumentParser, *, workers_alone: bool = False) -> None:
    """Add a flag per setting, or per setting that matters to a rank of its own. What they parse stays text, None where
    it is absent, and goes to `resolve`."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, field in setting_fields(Settings).items():
        if workers_alone and field.about.group not in WORKER_GROUPS and name not in WORKER_SETTINGS:
            continue
        group = groups.setdefault(field.about.group, parser.add_argument_group(field.about.group))
        text = f"{field.about.help} {_facts(field)}".replace("%", "%%")
        if field.base is bool:
            group.add_argument(field.flag, dest=name, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            group.add_argument(field.flag, dest=name, metavar=_metavar(field), help=text)


def resolve(
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    config: str | None,
    auto_device: Callable[[Mapping[str, Any]], AutoDevice] | None = None,
) -> Resolved:
    """Merge the sources. `flags` may hold other keys, and None for absent ones. `auto_device` is asked what device
    `auto` is, given the other values; without it, it stays `auto`. Raises SettingsError."""
    if config is None:
        config = environ.get(CONFIG_VARIABLE) or None  # blanks are an optional variable's way to be unset
    sources = (
        {
            name: (raw, field.flag)
            for name, field in setting_fields(Settings).items()
            if (raw := flags.get(name)) is not None
        },
        _from_environment(environ),
        _from_file(Path(config)) if config is not None else {},
    )
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, field in setting_fields(Settings).items():
        raw, origin = next((source[name] for source in sources if name in source), (field.default, DEFAULT))
        try:
            value = raw if origin == DEFAULT else _parse(field, raw)
            field.check(value)
        except SettingsError as error:
            raise SettingsError(f"{error} (from {origin})") from None
        values[name], origins[name] = value, origin
    if values["device"] == "auto" and auto_device is not None:
        chosen = auto_device(values)
        values["device"], origins["device"] = chosen.device, f"auto: {chosen.reason}"
    for name, value in DEVICE_DEFAULTS.get(values["device"], {}).items():
        if origins[name] == DEFAULT:
            values[name], origins[name] = value, f"default of device {values['device']}"
    settings = Settings(**values)
    check_agreement(settings)
    return Resolved(settings, origins)


def render(resolved: Resolved) -> str:
    """Every setting as TOML that `--config` reads back, its origin behind it; an unset one is a comment."""
    lines = []
    group = ""
    for name, field in setting_fields(Settings).items():
        if field.about.group != group:
            group = field.about.group
            lines.append(f"\n# {group}")
        value, origin = getattr(resolved.settings, name), resolved.origins[name]
        if value is None:
            lines.append(f"# {name} is unset: {field.about.unset}  # {origin}")
        else:
            lines.append(f"{name} = {_toml(value)}  # {origin}")
    return "\n".join(lines).lstrip() + "\n"


def as_text(settings: Settings) -> dict[str, str]:
    """Every setting as text, for GetServerInfo. None of them is a secret: keys are named by their files."""
    return {
        name: "" if (value := getattr(settings, name)) is None else value if isinstance(value, str) else _toml(value)
        for name in setting_fields(Settings)
    }


def _from_environment(environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    by_variable = {field.variable: name for name, field in setting_fields(Settings).items()}
    found = {}
    for variable, raw in environ.items():
        if not variable.startswith("PAGEWIRE_") or variable == CONFIG_VARIABLE:
            continue
        if variable not in by_variable:
            if is_foreign(variable, environ):
                continue
            raise SettingsError(f"environment variable {variable} is no setting{_did_you_mean(variable, by_variable)}")
        found[by_variable[variable]] = (raw, variable)
    return found


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


def _from_file(path: Path) -> dict[str, tuple[Any, str]]:
    try:
        table = decode_toml(path.read_bytes())
    except OSError as error:
        raise SettingsError(f"configuration file {path} cannot be read: {error.strerror}") from error
    except WireError as error:
        raise SettingsError(f"configuration file {path} is not TOML: {error}") from error
    fields = setting_fields(Settings)
    for key in table:
        if key not in fields:
            raise SettingsError(f"configuration file {path}: key {key!r} is no setting{_did_you_mean(key, fields)}")
    return {key: (value, str(path)) for key, value in table.items()}


def _parse(field: SettingField, raw: Any) -> Any:
    """Turn text into the setting's type. What is no text (a TOML number) stays as it is, for `check` to judge."""
    if not isinstance(raw, str):
        is_whole = isinstance(raw, int) and not isinstance(raw, bool)
        return float(raw) if field.base is float and is_whole and raw.bit_length() <= 64 else raw
    text = raw.strip()
    if field.optional and not text:
        return None
    if field.base is str or isinstance(field.base, tuple):
        return raw
    if field.base is bool:
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        raise SettingsError(f"{field.name} = {raw!r} must be true or false")
    if field.about.unit == "bytes":
        return _parse_size(field.name, text)
    try:
        return int(text) if field.base is int else float(text)
    except ValueError:
        kind = "a whole number" if field.base is int else "a number"
        raise SettingsError(f"{field.name} = {raw!r} must be {kind} of {field.range_text}") from None


def _parse_size(name: str, text: str) -> int:
    """Read 1048576, 512M, 1.5GB (powers of ten) or 4GiB (powers of two); a bare letter means a power of two."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise SettingsError(f"{name} = {text!r} must be a number of bytes, such as 1048576, 512M or 4GiB")
    number, prefix, binary = match.groups()
    decimal = bool(prefix) and not binary and text.lower().endswith("b")
    size = float(number) * (1000 if decimal else 1024) ** " kmgt".index(prefix.lower() or " ")
    if not math.isfinite(size):
        raise SettingsError(f"{name} = {text[:20]}… is no size that any machine has")
    return int(size)


def _facts(field: SettingField) -> str:
    facts = []
    if field.base is not bool and field.range_text:
        facts.append(field.range_text)
    shown = "" if field.default is None else field.default if isinstance(field.default, str) else _toml(field.default)
    facts.append(f"default: {shown}" if field.default is not None else f"unset: {field.about.unset}")
    facts.append(field.variable)
    return "[" + "; ".join(facts) + "]"


def _metavar(field: SettingField) -> str:
    if isinstance(field.base, tuple):
        return "|".join(field.base)
    if field.about.unit == "bytes":
        return "SIZE"
    return {int: "N", float: "SECONDS" if field.about.unit == "s" else "X"}.get(field.base, "TEXT")


def _toml(value: str | bool | float) -> str:
    if isinstance(value, str):
        # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)


def _did_you_mean(word: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
