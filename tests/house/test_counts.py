"""The counts of the tree are within their limits, and `tests/house/counts.py` counts what it says."""

import pytest
from house.counts import Count, circles, counts, imports, loose, naming, small

IMPORTS = {
    "client/a.py": "from pagewire.client.b import name\n",
    "client/b.py": "def late():\n    from pagewire.client import c\n",
    "client/c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pagewire.client.a\n",
    "client/d.py": "from pagewire.client.room import part, name\n",
    "client/room/__init__.py": "name = 1\n",
    "client/room/part.py": "from pagewire.wire import plan\n",
    "proto/wire/plan.py": "import msgspec\n",
}


@pytest.mark.parametrize("count", counts(), ids=lambda count: count.what)
def test_a_count_is_within_its_limit(count: Count) -> None:
    assert count.holds, f"{len(count.found)} {count.what}, at most {count.limit}: {', '.join(count.found)}"


def test_imports_for_types_and_inside_functions_count() -> None:
    graph = imports(IMPORTS)
    assert graph["pagewire.client.a"] == {"pagewire.client.b"}
    assert graph["pagewire.client.b"] == {"pagewire.client.c"}
    assert graph["pagewire.client.c"] == {"pagewire.client.a"}
    assert graph["pagewire.client.d"] == {"pagewire.client.room", "pagewire.client.room.part"}
    assert graph["pagewire.client.room.part"] == {"pagewire.wire.plan"}
    assert circles(graph) == [["pagewire.client.a", "pagewire.client.b", "pagewire.client.c"]]


def test_a_label_is_no_small_file() -> None:
    files = {
        "worker/__init__.py": '"""A label."""\n',
        "worker/cpu/__init__.py": '"""No label."""\n\nNAME = 1\n',
        "worker/short.py": "x = 1\n" * 69,
        "worker/long.py": "x = 1\n" * 70,
        "worker/short.cpp": "int x;\n",
    }
    assert list(small(files)) == ["worker/cpu/__init__.py", "worker/short.py"]


def test_names_and_what_is_made_of_them() -> None:
    files = {"a": "top_p", "b": "keep_top_p(x)", "c": "top_p_S", "d": "chunk_top_ptr", "e": "top_k"}
    assert list(naming(files, "top_p")) == ["a", "b", "c"]


def test_loose_files_lie_in_the_folder_itself() -> None:
    files = dict.fromkeys(("worker/a.py", "worker/README.md", "worker/py.typed", "worker/cpu/b.py", "client/c.py"), "")
    assert list(loose(files, "worker")) == ["worker/a.py", "worker/README.md"]
