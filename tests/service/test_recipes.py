"""The recipes of the client's README run as they stand there, against a real service."""

import re
from pathlib import Path

import pytest
from support.service import serve

import pagewire.client
from pagewire.client import Client

README = Path(__file__).parents[2] / "client" / "README.md"


@pytest.mark.slow
@pytest.mark.model
def test_the_client_s_recipes_run() -> None:
    (code,) = re.findall(r"## Recipes\n.*?```python\n(.*?)```", README.read_text(), re.DOTALL)
    with serve(model="smollm2-135m", device="cpu", max_num_seqs=8) as service, Client(service.address) as client:
        names: dict[str, object] = {"client": client, "pagewire": pagewire}
        exec(compile(code, str(README), "exec"), names)
    assert {"first", "answer", "scored", "best", "described"} <= set(names)
