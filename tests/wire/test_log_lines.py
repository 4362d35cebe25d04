"""Log lines: one record is one line, whatever callers chose."""

import json
import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagewire.wire.log_lines import JsonLines, TextLines

FORGED = 'ann"\n2026-01-01 00:00:00,000 frontend ERROR forged \x1b[2J\u2028\\'


def record(message: str, *args: object, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("pagewire.test", logging.WARNING, __file__, 1, message, args, None)
    made.fields = fields
    return made


def test_a_line_of_json_has_all_there_is_to_know() -> None:
    line = json.loads(JsonLines("engine").format(record("%d frames", 3, tenant="ann", queue_s=0.25, reasons=["EOS"])))
    assert (line["level"], line["process"], line["logger"]) == ("warning", "engine", "pagewire.test")
    assert (line["message"], line["tenant"], line["queue_s"], line["reasons"]) == ("3 frames", "ann", 0.25, ["EOS"])
    assert line["time"].endswith("+00:00")
    assert "error" not in line


def test_a_line_of_text_has_the_fields_behind_the_message() -> None:
    lines = TextLines("%(levelname)s %(message)s")
    said = lines.format(record("ended", tenant="two words", queue_s=0.25, reasons=["EOS", "LENGTH"], tokens=3))
    assert said == 'WARNING ended tenant="two words" queue_s=0.25 reasons=EOS,LENGTH tokens=3'


@given(st.text())
def test_what_callers_chose_forges_no_line(value: str) -> None:
    made = record("request ended", tenant=value)
    assert json.loads(JsonLines("frontend").format(made))["tenant"] == value
    for lines in (JsonLines("frontend"), TextLines("%(message)s")):
        assert len(lines.format(made).splitlines()) == 1
        assert lines.format(made).isascii()
        assert lines.format(made).isprintable()


@pytest.mark.parametrize("value", [FORGED, "\udce9 is no UTF-8"])
def test_odd_text_comes_through_json_as_it_was(value: str) -> None:
    text = JsonLines("frontend").format(record("odd", name=value))
    assert json.loads(text)["name"] == value
    assert len(text.splitlines()) == 1


def test_long_values_are_cut_in_text() -> None:
    assert len(TextLines("%(message)s").format(record("odd", name="é" * 100_000))) < 10_000


def test_a_traceback_is_in_the_line() -> None:
    made = record("broke")
    try:
        raise ValueError("of a kind")
    except ValueError:
        made.exc_info = sys.exc_info()
    line = json.loads(JsonLines("engine").format(made))
    assert line["error"].startswith("Traceback")
    assert line["error"].endswith("ValueError: of a kind")


def test_the_running_request_is_named_once() -> None:
    for lines in (JsonLines("frontend", lambda: "r-1"), TextLines("%(message)s", lambda: "r-1")):
        assert lines.format(record("a helper is slow")).count("r-1") == 1
        assert lines.format(record("ended", request_id="r-2")).count("r-1") == 0
