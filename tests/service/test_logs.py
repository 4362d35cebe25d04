"""The log of a whole server: every process writes lines of the chosen format, and a request has its own."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from support.service import bearer, ids_of, serve, stream_request

KEY, OPERATORS_KEY = "a-key-of-enough-letters", "the-key-of-an-operator"

pytestmark = pytest.mark.slow


def log_of(folder: Path, log_format: str) -> list[str]:
    """What a server writes whose engine dies, that answers requests before and after, and drains."""
    keys = folder / "keys"
    keys.write_text(f"ann:{KEY}\nadmin:{OPERATORS_KEY}\n")
    with (
        (folder / "log").open("wb") as written,
        serve(
            log_format=log_format,
            log_level="info",
            sim_step_us=2000,
            operator_key=OPERATORS_KEY,
            api_keys_file=str(keys),
            stderr=written,
        ) as service,
    ):
        request = stream_request([1, 2, 3], stopping={"max_tokens": 3}, request_id="r-1")
        assert len(ids_of(service.inference.StreamGenerate(request, metadata=bearer(KEY), timeout=60))) == 3
        endless = stream_request([1, 2, 3], stopping={"max_tokens": 500}, request_id="r-2")
        stream = service.inference.StreamGenerate(endless, metadata=bearer(KEY), timeout=60)
        next(stream)
        service.children()["engine"].kill()
        assert len(ids_of(stream)) > 0
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(60) == 0
    text = (folder / "log").read_text()
    assert KEY not in text
    return text.splitlines()


def test_lines_of_json(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [json.loads(line) for line in log_of(tmp_path, "json")]
    assert {line["process"] for line in lines} >= {"supervisor", "frontend"}
    requests = [line for line in lines if line["message"] == "request ended"]
    assert [(line["request_id"], line["tenant"], line["code"], line["output_tokens"]) for line in requests] == [
        ("r-1", "ann", "OK", 3),
        ("r-2", "ann", "OK", 500),
    ]
    assert any("draining" in line["message"] for line in lines)


def test_lines_of_text(tmp_path: Path) -> None:
    lines = log_of(tmp_path, "text")
    shape = re.compile(r"[0-9-]{10} [0-9:,]{12} (supervisor|frontend|engine) (INFO|WARNING|ERROR) \S")
    assert [line for line in lines if not shape.match(line)] == []
    (first, _) = [line for line in lines if "request ended" in line]
    assert "request_id=r-1 tenant=ann model=" in first
