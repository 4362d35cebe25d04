"""Transport: how a client reaches its server: address, TLS, API key and channel options, for both channels."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from pagewire.client.errors import InvalidRequest

DEFAULT_TARGET = "127.0.0.1:50051"
DEFAULT_MAX_MESSAGE_BYTES = 64 * 1024 * 1024

_LOOPBACK = re.compile(r"(localhost|127\.[\d.]+|\[::1\]):\d+|unix:.*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """PEM files. Without a CA, gRPC's own roots; a certificate and its key where the server asks for one."""

    ca_file: str | Path | None = None
    certificate_file: str | Path | None = None
    key_file: str | Path | None = None
    server_name: str | None = None
    """The name that the server's certificate must carry, where it is not the target's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transport:
    """Everything needed to open a channel."""

    target: str = DEFAULT_TARGET
    api_key: str | None = field(default=None, repr=False)
    tls: Tls | None = None
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    """Largest message in either direction; the server's own limit on requests is usually smaller."""

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries. Raises InvalidRequest for a key that no header can carry."""
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise InvalidRequest("api_key must be printable ASCII", field="api_key")
        return () if self.api_key is None else (("authorization", f"Bearer {self.api_key}"),)

    def options(self) -> list[tuple[str, int | str]]:
        """Channel options."""
        options: list[tuple[str, int | str]] = [
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", self.max_message_bytes),
            # Two retriers would multiply: `retry` knows what has come back, the channel does not.
            ("grpc.enable_retries", 0),
            # A frontend that starts again is there within seconds; the default would wait up to two minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            # Clients of one process share no connection, so closing one never touches another.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if _LOOPBACK.fullmatch(self.target):
            options.append(("grpc.enable_http_proxy", 0))
        if self.tls is not None and self.tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return options

    def credentials(self) -> grpc.ChannelCredentials | None:
        """None for a channel without TLS. Raises InvalidRequest for a file that cannot be read."""
        if self.tls is None:
            return None
        if (self.tls.certificate_file is None) != (self.tls.key_file is None):
            raise InvalidRequest("a client certificate needs certificate_file and key_file, not one of them")
        return grpc.ssl_channel_credentials(
            root_certificates=_read(self.tls.ca_file, "ca_file"),
            private_key=_read(self.tls.key_file, "key_file"),
            certificate_chain=_read(self.tls.certificate_file, "certificate_file"),
        )

    def open(self) -> grpc.Channel:
        """A new channel; nothing connects before its first call."""
        credentials = self.credentials()
        if credentials is None:
            return grpc.insecure_channel(self.target, options=self.options())
        return grpc.secure_channel(self.target, credentials, options=self.options())

    def open_aio(self) -> grpc.aio.Channel:
        """The same for asyncio; call it where the event loop runs."""
        credentials = self.credentials()
        if credentials is None:
            return grpc.aio.insecure_channel(self.target, options=self.options())
        return grpc.aio.secure_channel(self.target, credentials, options=self.options())


def _read(path: str | Path | None, name: str) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{name} {str(path)!r} cannot be read: {error.strerror}", field=name) from error
