"""The README's "Where to look": each place that it names exists, and few files answer each question."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACE = re.compile(r"`([\w/]+\.py)` `([\w.]+)`")
MOST_FILES = {"a token is sampled": 3, "a block is freed": 2, "a request is cancelled": 4}


def rows() -> dict[str, list[tuple[str, str]]]:
    """What happens → the (file, name) pairs that its row names."""
    section = (ROOT / "README.md").read_text().split("\n## Where to look\n")[1].split("\n## ")[0]
    cells = [line.strip("| ").split(" | ", 1) for line in section.splitlines() if line.startswith("| ")]
    found = {what: PLACE.findall(places) for what, places in cells}
    return {what: places for what, places in found.items() if places}


def defined_names(path: Path) -> set[str]:
    """Functions and classes of a module, and `Class.method` of each class."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}.{member.name}"
                for member in node.body
                if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return names


def test_every_question_has_its_row() -> None:
    assert rows().keys() >= {*MOST_FILES, "a gRPC status is chosen", "a setting is read"}


@pytest.mark.parametrize("what", rows())
def test_each_place_exists(what: str) -> None:
    for file, name in rows()[what]:
        assert (ROOT / file).is_file(), file
        assert name in defined_names(ROOT / file), f"{file} does not define {name}"


@pytest.mark.parametrize(("what", "most"), MOST_FILES.items())
def test_few_files_answer_it(what: str, most: int) -> None:
    assert 1 <= len({file for file, _ in rows()[what]}) <= most
