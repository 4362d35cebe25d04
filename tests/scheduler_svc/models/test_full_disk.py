"""A disk that is full under the cache: a limit on the size of files stands for it."""

import hashlib
import os
import resource
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.model_files import GgufSource
from support.models import QUIET

from pagewire.scheduler_svc.models.bundled import BundledModel, fetch_bundled
from pagewire.scheduler_svc.models.gguf_file import read_gguf
from pagewire.scheduler_svc.startup_errors import ModelError

CONTENT = os.urandom(200_000) + bytes(2_800_000)
MODEL = BundledModel(
    name="carried",
    distribution="pw-carried-test",
    version="1.0",
    wheel_bytes=200_000,
    file_name="m.gguf",
    file_bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    license="none",
)


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Of a pip that finds a wheel whose file is much larger than the wheel."""
    folder = tmp_path / "index"
    folder.mkdir()
    info = "pw_carried_test-1.0.dist-info"
    with zipfile.ZipFile(
        folder / "pw_carried_test-1.0-py3-none-any.whl", "w", compression=zipfile.ZIP_DEFLATED
    ) as wheel:
        wheel.writestr("pw_carried_test/m.gguf", CONTENT)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: pw-carried-test\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return {**os.environ, "PIP_FIND_LINKS": str(folder), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}


@pytest.mark.parametrize(
    ("room", "message"),
    [
        (100_000, r"could not be fetched: .*[Ff]ile too large"),  # pip's own words
        (1_000_000, "cache folder .*carried cannot be written: File too large; make room"),
    ],
)
def test_no_room_for_a_carried_model(environ: dict[str, str], tmp_path: Path, room: int, message: str) -> None:
    cache = tmp_path / "cache"
    with files_of_at_most(room), pytest.raises(ModelError, match=f"(?s){message}"):
        fetch_bundled(MODEL, cache, environ, QUIET)
    assert [file.name for file in (cache / "models" / "carried").iterdir()] == [".lock"]
    assert fetch_bundled(MODEL, cache, environ, QUIET).read_bytes() == CONTENT


def test_no_room_for_what_was_read_of_a_gguf_file(gguf_source: GgufSource, tmp_path: Path) -> None:
    file, cache = gguf_source.write(tmp_path / "m.gguf"), tmp_path / "cache"
    with files_of_at_most(10), pytest.raises(ModelError, match=r"cache folder .* cannot be written: File too large"):
        read_gguf(file, "m", cache, QUIET)
    (folder,) = (cache / "gguf").iterdir()
    assert list(folder.iterdir()) == []
    assert read_gguf(file, "m", cache, QUIET).tokenizer_file == str(folder / "tokenizer.json")


def test_a_server_says_so_in_a_sentence(gguf_source: GgufSource, tmp_path: Path) -> None:
    file = gguf_source.write(tmp_path / "m.gguf")
    command = [sys.executable, "-m", "pagewire.scheduler_svc", "serve", "--quiet", "--device=sim", f"--model={file}"]
    shell = ["bash", "-c", 'ulimit -f 1; exec "$@"', "bash", *command, f"--cache-dir={tmp_path / 'cache'}"]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("pagewire: cache folder ")
    assert done.stderr.count("\n") == 1
