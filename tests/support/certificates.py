"""Certificates for tests: an authority of their own, and what it issues."""

import ssl
import subprocess
from pathlib import Path

_KIND = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Authority:
    """A CA with files in a folder: NAME.key, NAME.pem."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self.key, self.certificate = folder / f"{name}.key", folder / f"{name}.pem"
        self._openssl("req", "-x509", *_KIND, "-subj", f"/CN={name}", "-days", "1", *self._to(name))

    def issue(self, common_name: str, alternative_names: str = "", *, into: str) -> tuple[Path, Path]:
        """A key and a certificate, `into`.key and `into`.pem: empty names leave them out."""
        return self.issue_subject(
            f"/CN={common_name}" if common_name else "/O=noend_of_content", alternative_names, into=into
        )

    def issue_subject(
        self, subject: str, alternative_names: str = "", extension: str = "", *, into: str
    ) -> tuple[Path, Path]:
        """The same of a whole subject, and with an extension that is openssl's word for one."""
        signed = (
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-CA",
            str(self.certificate),
            "-CAkey",
            str(self.key),
            "-days",
            "1",
        )
        names = ("-addext", f"subjectAltName={alternative_names}") if alternative_names else ()
        extensions = ("-addext", extension) if extension else ()
        self._openssl(
            "req",
            "-x509",
            "-utf8",
            *_KIND,
            "-subj",
            subject,
            *names,
            *extensions,
            *signed,
            "-CAkey",
            self.key.name,
            *self._to(into),
        )
        return self._folder / f"{into}.key", self._folder / f"{into}.pem"

    def alter(self, name: str, old: bytes, new: bytes) -> None:
        """Write other bytes, as many, into `name`.pem and sign it again: openssl's tools write no NUL into a name."""
        certificate = self._folder / f"{name}.pem"
        der = ssl.PEM_cert_to_DER_cert(certificate.read_text())
        start = _element(der, 0)[0]
        end_of_content = _element(der, start)[1]
        end_of_algorithm = _element(der, end_of_content)[1]
        assert len(old) == len(new)
        assert der[start:end_of_content].count(old) == 1
        content = der[start:end_of_content].replace(old, new)
        (self._folder / "content").write_bytes(content)
        self._openssl("dgst", "-sha256", "-sign", self.key.name, "-out", "signature", "content")
        signature = b"\0" + (self._folder / "signature").read_bytes()
        whole = content + der[end_of_content:end_of_algorithm] + bytes((0x03, len(signature))) + signature
        certificate.write_text(ssl.DER_cert_to_PEM_cert(b"\x30\x82" + len(whole).to_bytes(2) + whole))

    @staticmethod
    def _to(name: str) -> tuple[str, ...]:
        return ("-keyout", f"{name}.key", "-out", f"{name}.pem")

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self._folder, check=True, capture_output=True)


def _element(der: bytes, at: int) -> tuple[int, int]:
    """Where the content of the element at `at` begins, and where it ends."""
    length, start = der[at + 1], at + 2
    if length & 0x80:
        digits = length & 0x7F
        length, start = int.from_bytes(der[start : start + digits]), start + digits
    return start, start + length
