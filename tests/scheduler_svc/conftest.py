"""Servers with scripted children, for the tests of the service's processes."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.supervised import ScriptedServer


@pytest.fixture
def run_server(tmp_path: Path) -> Iterator[Callable[..., ScriptedServer]]:
    """Start servers; `worker="fail"` and the like set a role's script, `redirect` is what a shell is told;
    `ignores_sighup` is what nohup does."""
    servers: list[ScriptedServer] = []

    def start(
        *flags: str,
        environ: dict[str, str] | None = None,
        redirect: str = "",
        ignores_sighup: bool = False,
        **scripts: str,
    ) -> ScriptedServer:
        folder = tmp_path / f"scripts-{len(servers)}"
        folder.mkdir()
        # Not in tmp_path: a Unix socket's path may have 107 bytes.
        runtime = Path(tempfile.mkdtemp(prefix="pw"))
        for role, script in scripts.items():
            (folder / role).write_text(script)
        servers.append(ScriptedServer(folder, runtime, flags, environ or {}, redirect, ignores_sighup))
        return servers[-1]

    yield start
    for server in servers:
        server.clean_up()
        shutil.rmtree(server.runtime_base)
