"""Corrupted models, each given to a real server: a sentence that names file and key, in little time and memory.

A sample of them; PAGEWIRE_TEST_CORRUPTED_MODELS=200 starts all. Time is the processors', of the server and of whatever
it started, so that a busy machine changes nothing; memory is the most that one process had. What was measured is
printed.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from support.corrupted_models import Corrupted, corrupted_models, sample, whole_models
from support.service import serve

COUNT = int(os.environ.get("PAGEWIRE_TEST_CORRUPTED_MODELS", "20"))
SEED = int(os.environ.get("PAGEWIRE_TEST_SEED", "14"))
LIMIT_S = 3.0
LIMIT_KIB = 300 * 1024
PATIENCE_S = 60.0

pytestmark = [pytest.mark.alone, pytest.mark.slow, pytest.mark.timeout(120 + 10 * COUNT)]


@dataclass(frozen=True, slots=True)
class End:
    """How a server ended."""

    status: int
    said: str
    took_s: float
    processor_s: float
    peak_kib: int
    left: list[psutil.Process]


MEASURED = """
import json, resource, subprocess, sys
status = subprocess.call(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as file:
    json.dump([status, used.ru_utime + used.ru_stime, used.ru_maxrss], file)
"""
"""Runs a command from a small process: the kernel counts what was there before a command began as the command's, and
this test's own memory is large. Times are a sum over all that ended, memory is the largest one's."""


def run(model: Path, folder: Path) -> End:
    """`serve` until it ends by itself."""
    flags = ["--device=cpu", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", f"--cache-dir={folder / 'cache'}"]
    command = [sys.executable, "-m", "pagewire.scheduler_svc", "serve", "--quiet", f"--model={model}", *flags]
    mark = {"TMPDIR": str(folder)}
    started_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-S", "-c", MEASURED, str(folder / "used"), *command],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=PATIENCE_S,
        env=os.environ | mark,
    )
    took_s = time.monotonic() - started_s
    status, processor_s, peak_kib = json.loads((folder / "used").read_text())
    left = [member for member in psutil.process_iter() if _is_marked(member, mark)]
    return End(status, done.stderr, took_s, processor_s, peak_kib, left)


def _is_marked(process: psutil.Process, mark: dict[str, str]) -> bool:
    try:
        return mark.items() <= process.environ().items()
    except psutil.Error:
        return False


def complaints(case: Corrupted, end: End) -> list[str]:
    """What is wrong with how it ended."""
    found = []
    if end.status != 1:
        found.append(f"exit status {end.status}")
    if "Traceback" in end.said:
        found.append("a traceback")
    missing = [name for name in case.names if name not in end.said]
    if missing:
        found.append(f"does not name {missing}")
    if end.processor_s > LIMIT_S:
        found.append(f"{end.processor_s:.1f} s of processors")
    if end.peak_kib > LIMIT_KIB:
        found.append(f"{end.peak_kib // 1024} MiB")
    if end.left:
        found.append(f"left {end.left}")
    return [f"{case.name}: {what}: {end.said[-400:]!r}" for what in found]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], dict[str, bytes]]:
    return whole_models(tmp_path_factory.mktemp("whole"))


def test_a_corrupted_model_is_refused_with_a_sentence(
    whole: tuple[dict[str, bytes], dict[str, bytes]], tmp_path: Path
) -> None:
    hf, gguf = whole
    every = list(corrupted_models(hf, next(iter(gguf.values()))))
    assert len(every) >= 200
    assert len({case.name for case in every}) == len(every)
    cases = every if COUNT >= 200 else sample(every, COUNT, SEED)
    found = []
    ends = []
    for index, case in enumerate(cases):
        folder = tmp_path / str(index)
        folder.mkdir()
        end = run(case.write(folder, gguf if case.is_gguf else hf), tmp_path)
        ends.append(end)
        found += complaints(case, end)
    quick = sum(end.took_s <= LIMIT_S for end in ends)
    small = sum(end.peak_kib <= LIMIT_KIB for end in ends)
    peak_mib = max(end.peak_kib for end in ends) >> 10
    slowest_s, processor_s = max(end.took_s for end in ends), max(end.processor_s for end in ends)
    print(
        f"{len(ends)} models: {quick} within {LIMIT_S:g} s by the clock, the slowest {slowest_s:.1f} s, of processors "
        f"{processor_s:.1f} s; {small} below {LIMIT_KIB // 1024} MiB, the largest {peak_mib} MiB"
    )
    assert not found, f"{len(found)} complaints:\n" + "\n".join(found[:20])


@pytest.mark.parametrize("kind", [0, 1], ids=["directory", "gguf"])
def test_the_models_they_are_made_of_are_served(
    whole: tuple[dict[str, bytes], dict[str, bytes]], kind: int, tmp_path: Path
) -> None:
    model = Corrupted("whole", (), {}, is_gguf=kind == 1).write(tmp_path, whole[kind])
    with serve(model=str(model), device="cpu", dtype="float32", cache_dir=tmp_path / "cache") as service:
        fork_servers = {"frontend-fork-server", "worker-fork-server"}
        assert service.children().keys() == {"engine", "frontend", "worker", *fork_servers}
