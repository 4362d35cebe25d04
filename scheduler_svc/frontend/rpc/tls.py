"""TLS: the certificate, its key and the clients' CA, checked as a whole before gRPC gets them.

gRPC takes what it is given and says nothing until a client's handshake fails; so the files are loaded by Python's own
TLS first. Connections that are there keep what they began with.
"""

import ssl
from pathlib import Path

import grpc

from pagewire.scheduler_svc.launch import TlsFiles
from pagewire.scheduler_svc.startup_errors import StartupError


class TlsFileError(StartupError):
    """The files cannot be used; the message names them."""


class Tls:
    """What new connections are served with; one for all listeners of a process."""

    def __init__(self) -> None:
        self._configuration: grpc.ServerCertificateConfiguration | None = None
        self._need_client_certificate = False

    def use(self, configuration: grpc.ServerCertificateConfiguration, need_client_certificate: bool) -> None:
        """From now on. Whether clients need a certificate holds from the first time on."""
        self._configuration = configuration
        self._need_client_certificate = need_client_certificate

    def credentials(self) -> grpc.ServerCredentials:
        """Of a listener. gRPC asks at every handshake, on a thread of its own, for a newer configuration."""
        first = given = self._configuration
        assert first is not None, "the files are read before anything listens"

        def newer() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            if self._configuration is given:
                return None
            given = self._configuration
            return given

        return grpc.dynamic_ssl_server_credentials(
            first,
            newer,  # type: ignore[arg-type]  # none is an answer, which the stubs do not know
            self._need_client_certificate,
        )


def read_tls(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    """Raises TlsFileError, OSError."""
    content = _content(files)
    _check(files)
    if _content(files) != content:
        raise TlsFileError(f"{files.certificate}, {files.key} change while they are read")
    certificate, key, client_ca = content
    return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=client_ca)


def _content(files: TlsFiles) -> tuple[bytes, bytes, bytes | None]:
    client_ca = None if files.client_ca is None else Path(files.client_ca).read_bytes()
    return Path(files.certificate).read_bytes(), Path(files.key).read_bytes(), client_ca


def _check(files: TlsFiles) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password's source, OpenSSL asks the terminal.
        context.load_cert_chain(files.certificate, files.key, password=b"")
    except (ssl.SSLError, ValueError) as error:
        raise TlsFileError(f"{files.certificate} and {files.key} are no certificate and its key: {error}") from error
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except ssl.SSLError as error:
            raise TlsFileError(f"{files.client_ca} holds no certificates of a CA: {error}") from error
