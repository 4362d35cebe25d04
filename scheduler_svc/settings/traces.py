"""Where traces go: what the setting says, or the standard variables of OpenTelemetry, and whether they can be made.

Nothing of OpenTelemetry is imported to find out.
"""

import importlib.util
import logging
from collections.abc import Mapping
from urllib.parse import urlsplit

from pagewire.scheduler_svc.settings.settings import Settings
from pagewire.scheduler_svc.startup_errors import SettingsError

_log = logging.getLogger(__name__)
_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.grpc")
_LACKING = (
    "opentelemetry-sdk and opentelemetry-exporter-otlp-proto-grpc are not installed: pip install 'pagewire[otel]'"
)


def traces_endpoint(settings: Settings, environ: Mapping[str, str]) -> str | None:
    """The collector's URL; none where no traces are wanted, or the environment alone wants what is not installed, which
    the log says. Raises SettingsError."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if settings.otlp_endpoint is not None:  # whatever the environment says
        check_endpoint("otlp_endpoint", settings.otlp_endpoint)
        if not _is_installed():
            raise SettingsError(f"otlp_endpoint is set, and {_LACKING}")
        return settings.otlp_endpoint
    if environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() not in ("", "otlp"):
        return None
    for name in _VARIABLES:
        if endpoint := environ.get(name, "").strip():
            check_endpoint(name, endpoint)
            if _is_installed():
                return endpoint
            _log.warning("%s is set and no traces are made: %s", name, _LACKING)
            return None
    return None


def check_endpoint(name: str, url: str) -> None:
    """Raises SettingsError unless it is the URL of a gRPC listener. One that may hold a password is not repeated: that
    belongs into OTEL_EXPORTER_OTLP_HEADERS."""
    said = name if "@" in url else f"{name} = {url!r}"
    wanted = "must be http://host:port or https://host:port"
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise SettingsError(f"{said} {wanted}: {error}") from error
    if parts.scheme not in ("http", "https") or not host or not port:
        raise SettingsError(f"{said} {wanted}")
    if parts.username is not None or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise SettingsError(f"{said} {wanted}, and has more than that")


def _is_installed() -> bool:
    try:
        return all(importlib.util.find_spec(name) is not None for name in _NEEDED)
    except ModuleNotFoundError:  # of a package above it
        return False
