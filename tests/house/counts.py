"""Counts of the tree: loose files, small files, files that name a sampling parameter, circles of imports.

    python tests/house/counts.py

prints each count beside its limit; exits with 1 where one is over it. `test_counts` holds the limits.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRODUCT = ("proto", "scheduler_svc", "worker", "client")
PACKAGES = {
    "proto/pagewire/v1": "pagewire.v1",
    "proto/wire": "pagewire.wire",
    "scheduler_svc": "pagewire.scheduler_svc",
    "worker": "pagewire.worker",
    "client": "pagewire.client",
}
SMALL = 70
"""A Python file of fewer lines is small."""
PARAMETER = "top_p"
"""A sampling parameter like any other: in how many files it is named, a new one will have to be."""


@dataclass(frozen=True, slots=True)
class Count:
    """What was counted, the most there may be, and what is in it."""

    what: str
    limit: int
    found: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether there are no more than there may be."""
        return len(self.found) <= self.limit


def counts() -> list[Count]:
    """All of them, of the files that git tracks."""
    files = product_files()
    return [
        Count("files directly in worker/", 12, tuple(loose(files, "worker"))),
        Count("files directly in scheduler_svc/frontend/", 8, tuple(loose(files, "scheduler_svc/frontend"))),
        Count(f"Python files of fewer than {SMALL} lines", 45, tuple(small(files))),
        Count(f"files that name {PARAMETER}", 13, tuple(naming(files, PARAMETER))),
        Count("circles of imports", 0, tuple(" ↔ ".join(circle) for circle in circles(imports(files)))),
    ]


def product_files() -> dict[str, str]:
    """The text of every file of the product, by its path. What is generated is left out: code, and the last release's
    descriptors."""
    listing = subprocess.run(["git", "ls-files", *PRODUCT], cwd=ROOT, check=True, capture_output=True, text=True)
    others = (".txtpb", ".png")
    names = [name for name in listing.stdout.splitlines() if "_pb2" not in name and not name.endswith(others)]
    return {name: (ROOT / name).read_text() for name in names if (ROOT / name).is_file()}


def loose(files: Mapping[str, str], folder: str) -> Iterator[str]:
    """Files that lie in the folder itself; `py.typed` marks a package and has nothing in it."""
    for name in files:
        path = Path(name)
        if str(path.parent) == folder and path.name != "py.typed":
            yield name


def small(files: Mapping[str, str]) -> Iterator[str]:
    """Python files of few lines. An `__init__.py` that holds a docstring alone is its folder's label, and no file that
    somebody has to open."""
    for name, text in files.items():
        if name.endswith(".py") and text.count("\n") < SMALL and not _is_label(name, text):
            yield name


def naming(files: Mapping[str, str], word: str) -> Iterator[str]:
    """Files in which a word stands, alone or in the name of what is made of it (`keep_top_p`, `top_p_S`)."""
    found = re.compile(rf"{re.escape(word)}(?![A-Za-z0-9])")
    return (name for name, text in files.items() if found.search(text))


def imports(files: Mapping[str, str]) -> dict[str, set[str]]:
    """Module → the modules of ours that it imports anywhere: at its top, for types alone, or inside a function.

    `from package import name` is an import of the submodule of that name where there is one, else of the package.
    """
    modules = {_module(name): text for name, text in files.items() if name.endswith(".py")}
    return {module: _imported(text, modules) - {module} for module, text in modules.items()}


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Modules that reach each other (the strongly connected components of more than one), by Tarjan's algorithm."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = lowest[module] = len(index)
        stack.append(module)
        for other in sorted(graph.get(module, ())):
            if other not in index:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], index[other])
        if lowest[module] == index[module]:
            component = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(component) > 1:
                found.append(sorted(component))

    for module in sorted(graph):
        if module not in index:
            visit(module)
    return found


def _is_label(name: str, text: str) -> bool:
    body = ast.parse(text).body
    return name.endswith("/__init__.py") and all(
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body
    )


def _module(name: str) -> str:
    folder = next(folder for folder in PACKAGES if name.startswith(folder + "/"))
    parts = name.removeprefix(folder + "/").removesuffix(".py").split("/")
    return ".".join([PACKAGES[folder], *(part for part in parts if part != "__init__")])


def _imported(text: str, modules: Mapping[str, str]) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names}
            case ast.ImportFrom(module=str() as package, names=names):
                submodules = {f"{package}.{alias.name}" for alias in names} & modules.keys()
                found |= submodules if len(submodules) == len(names) else submodules | {package}
    return found & modules.keys()


def main() -> int:
    """1 where a count is over its limit; with `--names`, what is in each of those too."""
    over = [count for count in counts() if not count.holds]
    for count in counts():
        print(f"{len(count.found):5}  of at most {count.limit:3}  {count.what}")
    if "--names" in sys.argv[1:]:
        for count in over:
            print(f"\n{count.what}:", *count.found, sep="\n  ")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
