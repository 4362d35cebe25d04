"""Policies of the house, written as tests so that nobody has to remember them."""

import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle", "yaml"}
FORBIDDEN_CALLS = {"eval", "exec", "recv_pyobj", "send_pyobj"}
TOP_LEVEL = {"pyproject.toml", "proto", "scheduler_svc", "worker", "client", "tests", "deploy", "README.md"}


def tracked(*patterns: str) -> list[str]:
    """Files that git tracks."""
    listing = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, check=True, capture_output=True, text=True)
    return listing.stdout.splitlines()


def product_files() -> list[str]:
    """Our own Python, generated code and tests left out."""
    return [name for name in tracked("*.py") if not name.startswith("tests/") and "_pb2" not in name]


def test_no_code_that_could_rebuild_objects_from_bytes() -> None:
    for name in product_files():
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            match node:
                case ast.Import(names=names):
                    modules = {alias.name.split(".")[0] for alias in names}
                case ast.ImportFrom(module=str() as module):
                    modules = {module.split(".")[0]}
                case _:
                    modules = set()
            assert not modules & FORBIDDEN_MODULES, f"{name} imports {modules & FORBIDDEN_MODULES}"
            if isinstance(node, ast.Call):
                function = node.func
                called = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
                is_method = isinstance(function, ast.Attribute)
                forbidden = called in FORBIDDEN_CALLS and not (is_method and called in {"eval", "exec"})
                assert not forbidden, f"{name}:{node.lineno} calls {called}"
                is_torch_load = is_method and called == "load" and ast.unparse(function) == "torch.load"
                assert not is_torch_load, f"{name}:{node.lineno} calls torch.load"


def test_every_module_says_what_it_owns() -> None:
    for name in product_files():
        assert ast.get_docstring(ast.parse((ROOT / name).read_text())), f"{name} has no module docstring"


def test_the_top_level_is_the_one_of_the_design() -> None:
    names = {name.split("/")[0] for name in tracked()}
    assert {name for name in names if not name.startswith(".")} == TOP_LEVEL


def test_nothing_is_left_for_later_in_the_code() -> None:
    for name in product_files():
        text = (ROOT / name).read_text()
        for word in ("TODO", "FIXME", "XXX", "raise NotImplementedError"):
            assert word not in text, f"{name} holds {word}"


def test_the_readme_is_read_in_one_sitting_and_leads_to_every_folder_s_own() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    led_to = set(re.findall(r"\]\((\w[\w/]*/README\.md)\)", text))
    for readme in tracked("*/README.md"):
        top = readme.split("/")[0]
        assert f"{top}/README.md" in led_to or top == readme, f"{readme} is not led to"
    assert not [name for name in led_to if not (ROOT / name).is_file()]
