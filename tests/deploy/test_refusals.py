"""The operator's page lists every refusal: what the code says is looked for there, sentence by sentence."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagewire.scheduler_svc.engine.queue_bounds import Amount, QueueBounds
from pagewire.scheduler_svc.frontend import errors
from pagewire.scheduler_svc.frontend.errors import RequestError, UnavailableReason

PROJECT = Path(__file__).parents[2]
FRONTEND = PROJECT / "scheduler_svc" / "frontend"
REFUSALS = {
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, RequestError) and kind not in (RequestError, errors.InvalidArgument)
}
"""Those that are not about a field, which the contract explains."""


@pytest.fixture(scope="module")
def section() -> str:
    page = (PROJECT / "deploy" / "README.md").read_text()
    return page.partition("\n## Every refusal")[2].partition("\n## ")[0]


def said(node: ast.expr) -> list[str]:
    """The fixed parts of a sentence; none of one that is put together elsewhere."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return [text for part in parts for text in said(part)]
    return []


def sentences() -> Iterator[tuple[str, str]]:
    """Where it stands, and the longest fixed part of a refusal's sentence."""
    for file in sorted(FRONTEND.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in REFUSALS):
                continue
            parts = [text for argument in node.args[:2] for text in said(argument)]
            if parts:
                yield f"{file.relative_to(FRONTEND)}:{node.lineno}", max(parts, key=len).strip(" ,:;'\"")


def test_every_sentence_is_on_the_page(section: str) -> None:
    found = dict(sentences())
    assert len(found) >= 25
    assert {place: text for place, text in found.items() if text.casefold() not in section.casefold()} == {}


def test_every_reason_is_on_the_page(section: str) -> None:
    assert set(re.findall(r"^\| `([A-Z_]+)` \|", section, re.MULTILINE)) == {
        reason.value for reason in UnavailableReason
    }


def test_what_the_queue_says_is_on_the_page(section: str) -> None:
    """As it comes out of the engine, with numbers for the page's dots."""
    bounds = QueueBounds()
    bounds.count("ann", Amount(4, 90))
    asked = {
        "sequences": ("ann", 1, 4, 1000),
        "tokens": ("ann", 20, 100, 100),
        "a tenant's sequences": ("ann", 1, 8, 1000),
        "a tenant's tokens": ("ann", 20, 100, 200),
    }
    for name, (tenant, tokens, max_sequences, max_tokens) in asked.items():
        refusal = bounds.refusal(tenant, tokens, max_sequences, max_tokens)
        assert refusal is not None, name
        assert re.sub(r"\d+|\bann\b", "…", refusal) in section, name


def test_every_status_has_a_row(section: str) -> None:
    """Each class of error has a status of gRPC's; each of those stands there."""
    status = (FRONTEND / "rpc" / "status.py").read_text()
    used = set(re.findall(r"code_pb2\.([A-Z_]+)", status))
    rows = set(re.findall(r"^\| ([A-Z_]+)\b", section, re.MULTILINE))
    assert used == rows
