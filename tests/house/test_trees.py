"""The folders' READMEs: each names every file of its folder and no other."""

import re
from pathlib import Path

import pytest
from house.trees import ROOT, listed_files, named, readme_of

LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")
FILE = re.compile(r"`([\w/]+\.(?:py|cpp|h|proto|sh))`")
READMES = sorted({readme_of(path.parent) for path in listed_files()})


@pytest.mark.parametrize("readme", READMES, ids=str)
def test_a_readme_names_the_files_of_its_folder(readme: Path) -> None:
    files = {path for path in listed_files() if readme_of(path.parent) == readme}
    assert named(readme) == files, f"run tests/house/trees.py for {readme}"


def test_the_readmes_lead_where_they_say() -> None:
    for readme in (Path("README.md"), Path("tests/README.md"), *READMES):
        text = (ROOT / readme).read_text()
        for target in LINK.findall(text):
            assert (ROOT / readme.parent / target).exists(), f"{readme} leads to {target}"
        if readme == Path("README.md"):
            continue  # it names files by their ends, under the folder that a paragraph is about
        for file in FILE.findall(text):
            assert (ROOT / file).exists() or (ROOT / readme.parent / file).exists(), f"{readme} names {file}"
