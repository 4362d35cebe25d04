"""Startup errors: why a server cannot start, for the person who started it, printed as one message without a traceback.

These never become a gRPC status, because nobody is connected yet; the errors of requests are in `errors`.
"""


class StartupError(Exception):
    """The server cannot start or go on; the message says what was found and what to do."""


class SettingsError(StartupError):
    """A setting is unknown, out of range, or does not fit another."""


class ModelError(StartupError):
    """A model cannot be found, fetched, or served."""


def shown(value: object) -> str:
    """A value of somebody's file for a message: its beginning, where it is long."""
    if isinstance(value, list | tuple) and len(value) > 8:
        return f"[{', '.join(map(shown, value[:8]))}, … {len(value)} in all]"
    if isinstance(value, str | bytes) and len(value) > 200:
        return f"{value[:200]!r}…"
    text = repr(value)
    return text if len(text) <= 1000 else text[:1000] + "…"
