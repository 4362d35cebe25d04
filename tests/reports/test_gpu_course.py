"""A run of `tests/gpu/run.sh` whose parts fail, hang or give no number: what was found stays, and the rest is done."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from gpu.report.budget import MARK, Budget, Course, Share, end, lives
from gpu.report.checks import Check, Skipped
from gpu.report.live import LiveReport
from gpu.report.results import PartRecord, read_results
from gpu.report.rounds import rounds
from gpu.report.writing import markdown

ABOUT = {"card": "a card", "torch": "2", "date": "today"}


def course_in(folder: Path) -> Course:
    return Course(results=folder / "results", log=folder / "log", dry_run=True, environ=os.environ)


def wait_until(holds: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 30.0
    while not holds():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_a_part_that_ends_its_process_does_not_stop_the_next(tmp_path: Path) -> None:
    """The first process has no such part and ends with argparse's status; the parent goes on with what is left."""
    course = course_in(tmp_path)
    Budget(60.0).run(Share(("nothing", "large"), 50.0), course)
    first, second = read_results(course.results)
    assert (first.part, first.status, first.note) == ("nothing", "error", "its process ended with status 2")
    assert (second.part, second.status) == ("large", "error")
    assert second.note == "ValueError: the card was not measured, so there are no floors"
    said = course.log.read_text()
    assert "invalid choice: 'nothing'" in said
    assert "Traceback" in said


def test_a_part_without_time_is_not_run(tmp_path: Path) -> None:
    stage = (Share(("card", "steps"), 50.0), Share(("peer",), 50.0))
    course = course_in(tmp_path)
    Budget(0.0).run_stage(stage, course)
    assert {(result.part, result.status) for result in read_results(course.results)} == {
        ("card", "not run"),
        ("steps", "not run"),
        ("peer", "not run"),
    }


def test_a_part_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """Whoever would import torch in a hundredth of a second; the clock stands still, so that the next has its turn."""
    course = course_in(tmp_path)
    Budget(0.01, clock=lambda: 0.0, least_s=0.001).run(Share(("kernels", "peer"), 60.0), course)
    assert [(result.part, result.status) for result in read_results(course.results)] == [
        ("kernels", "timed out"),
        ("peer", "timed out"),
    ]


def test_what_a_part_found_before_its_end_stays(tmp_path: Path) -> None:
    """As if the part had been at work when its process was ended."""
    course = course_in(tmp_path)
    record = PartRecord(course.results, "nothing")
    record.add(Check(what="a", seen=1.0, unit="x"), rounds=[3])
    with record.attempt("b"):
        raise ValueError("no")
    Budget(60.0).run(Share(("nothing",), 50.0), course)
    (ended,) = read_results(course.results)
    assert (ended.status, ended.note) == ("error", "b: ValueError: no; its process ended with status 2")
    assert ([check.what for check in ended.checks], ended.figures) == (["a"], {"rounds": [3]})


def test_whatever_a_process_started_ends_with_it(tmp_path: Path) -> None:
    """Also what has a session of its own, as a service has."""
    started = tmp_path / "started"
    script = f"import os, time; os.setsid(); open({str(started)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    environ = {**os.environ, MARK: "mark"}
    first = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {script!r}])"],
        env=environ,
        start_new_session=True,
    )
    wait_until(lambda: started.exists() and bool(started.read_text()))
    end(first, "mark")
    assert first.returncode == -signal.SIGKILL
    assert not lives(int(started.read_text()))


def test_an_attempt_that_fails_leaves_the_others(tmp_path: Path) -> None:
    file = tmp_path / "results"
    record = PartRecord(file, "kernels")
    assert read_results(file)[0].status == "running"
    with record.attempt("one"):
        raise RuntimeError("gone")
    with record.attempt("two"):
        record.add(Check(what="two", seen=0.5, unit="", relation="at most", limit=1.0))
    assert (read_results(file)[0].status, read_results(file)[0].note) == ("running", "one: RuntimeError: gone")
    record.end()
    (result,) = read_results(file)
    assert (result.status, result.note) == ("error", "one: RuntimeError: gone")
    assert [check.holds for check in result.checks] == [True]
    with pytest.raises(Skipped), record.attempt("three"):
        raise Skipped("nothing here")
    record.end(skipped="nothing here")
    assert read_results(file)[0].status == "skipped"


@pytest.mark.parametrize("seen", [float("inf"), float("nan")])
def test_what_is_no_number_comes_through_and_does_not_hold(tmp_path: Path, seen: float) -> None:
    """Which is what a kernel gives that is wrong."""
    file = tmp_path / "results"
    record = PartRecord(file, "kernels")
    record.add(Check(what="a", seen=seen, unit="", relation="at most", limit=1.0, floor=2.0))
    record.end()
    results = read_results(file)
    assert [(result.status, result.checks[0].holds) for result in results] == [("failed", False)]
    assert "| kernels | a | no number  | at most 1 | 2 | **does not hold** |" in markdown(results, ABOUT, False)


def test_the_report_is_there_before_the_run_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results"
    live = LiveReport(file, tmp_path, dry_run=True, seconds=lambda: 3.0)

    def parts() -> list[str]:
        return [part["part"] for part in json.loads((tmp_path / "gpu.json").read_text())["parts"]]

    with live:
        assert parts() == []
        record = PartRecord(file, "card")
        record.add(Check(what="speed", seen=2.0, unit="x"), name="a card")
        wait_until(lambda: "| card | speed | 2 x |" in (tmp_path / "gpu.md").read_text())
        assert parts() == ["card"]
        assert live.whole["held"] is False
        record.end()
    assert live.whole["held"] is True
    assert (tmp_path / "gpu.md").read_text().startswith("a card, ")
    assert capsys.readouterr().out.count("| card | speed | 2 x |") == 1


def test_a_slow_machine_has_fewer_rounds() -> None:
    times = iter([0.0, 10.0, 30.0, 50.0])
    assert list(rounds(5, lambda: next(times))) == [0, 1]
    assert list(rounds(3, lambda: 0.0)) == [0, 1, 2]
