"""Why a server cannot start: errors for the person who started it, printed as one message without a traceback.

These never become a gRPC status, because nobody is connected yet; the errors of requests are in `errors`.
"""


class StartupError(Exception):
    """The server cannot start or go on; the message says what was found and what to do."""


class SettingsError(StartupError):
    """A setting is unknown, out of range, or does not fit another."""


class ModelError(StartupError):
    """A model cannot be found, fetched, or served."""
