"""Certificates for tests: an authority of their own, and what it issues."""

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
        subject = f"/CN={common_name}" if common_name else "/O=nobody"
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
        self._openssl(
            "req", "-x509", *_KIND, "-subj", subject, *names, *signed, "-CAkey", self.key.name, *self._to(into)
        )
        return self._folder / f"{into}.key", self._folder / f"{into}.pem"

    @staticmethod
    def _to(name: str) -> tuple[str, ...]:
        return ("-keyout", f"{name}.key", "-out", f"{name}.pem")

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self._folder, check=True, capture_output=True)
