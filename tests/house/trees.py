"""The trees in the folders' READMEs: a line for each file, what it is.

    python tests/house/trees.py

writes the block behind "## Files" of every product folder's README anew, from the first sentence of each file's
docstring or leading comment; `test_trees` holds that every file has its line. A folder without a README of its own
stands in the one of the nearest folder above.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("proto", "scheduler_svc", "worker", "client", "deploy")
WIDTH = 118
_BLOCK = re.compile(r"(\n## Files\n\n```\n)(.*?)(```\n)", re.DOTALL)


def listed_files() -> list[Path]:
    """Files that git tracks or would, and that have something to say: no generated code, no markers, no labels."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *FOLDERS]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    paths = [Path(name) for name in sorted({*listing.stdout.splitlines()}) if (ROOT / name).is_file()]
    return [
        path
        for path in paths
        if path.name not in ("README.md", "LICENSE", "py.typed", "__init__.py") and "_pb2" not in path.name
    ]


def readme_of(folder: Path) -> Path:
    """The README that tells of a folder's files."""
    while not (ROOT / folder / "README.md").is_file():
        folder = folder.parent
    return folder / "README.md"


def named(readme: Path) -> set[Path]:
    """The files that a README's tree names."""
    found = _BLOCK.search((ROOT / readme).read_text())
    assert found, f"{readme} has no tree behind '## Files'"
    files, room = set(), Path()
    for line in found.group(2).splitlines():
        name = line.split()[0]
        if name.endswith("/"):
            room = Path(name)
        elif line.startswith(" "):
            files.add(readme.parent / room / name)
        else:
            files.add(readme.parent / name)
    return files


def tree(readme: Path, files: Iterable[Path]) -> str:
    """The lines of a README: the folder's own files, then each room's."""
    rooms: dict[Path, list[Path]] = {}
    for path in files:
        if readme_of(path.parent) == readme:
            rooms.setdefault(path.parent.relative_to(readme.parent), []).append(path)
    widest = max(len(path.name) for paths in rooms.values() for path in paths) + 4
    lines = []
    for room in sorted(rooms):
        if room != Path():
            lines.append(_line(f"{room}/", _said(readme.parent / room / "__init__.py"), widest))
        indent = "" if room == Path() else "  "
        lines += [_line(indent + path.name, _said(path), widest) for path in sorted(rooms[room])]
    return "".join(line + "\n" for line in lines)


def _said(path: Path) -> str:
    """The first sentence of a docstring or a leading comment."""
    if not (ROOT / path).is_file() or path.suffix == ".png":
        return ""
    text = (ROOT / path).read_text()
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    else:
        lines = [re.sub(r"^(//|#+!?) ?", "", line) for line in text.splitlines() if line.startswith(("//", "#"))]
        text = "\n".join(line for line in lines if not line.startswith("/usr/bin"))
    return re.split(r"(?<!\.)\.(?:\s|$)", text.split("\n\n")[0].replace("\n", " "), maxsplit=1)[0].strip()


def _line(name: str, said: str, widest: int) -> str:
    """Cut where a part of the sentence ends, else behind a word."""
    most = WIDTH - widest
    if len(said) > most:
        cut = max(said.rfind(end, 0, most) for end in (", ", "; ", ": ", " ("))
        said = said[: cut if cut > 0 else said.rfind(" ", 0, most)]
    return f"{name:<{widest}}{said}".rstrip()


def main() -> None:
    """Write every README's tree."""
    files = listed_files()
    for readme in sorted({readme_of(path.parent) for path in files}):
        lines = tree(readme, files)
        path = ROOT / readme
        path.write_text(_BLOCK.sub(lambda found, lines=lines: found[1] + lines + found[3], path.read_text()))


if __name__ == "__main__":
    main()
