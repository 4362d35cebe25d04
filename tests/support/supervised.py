"""A supervisor under test: `scripted_server.py` in a process, and ways to wait for what its children log."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).parent
WAIT_S = 20.0


def wait_for(condition: Callable[[], Any], what: str, within_s: float = WAIT_S) -> Any:
    """Poll a condition on other processes' files and pids, for which there is no event to wait on."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {within_s} s for {what}"
        time.sleep(0.01)
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie that its reaper has not met yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


class ScriptedServer:
    """One run of scripted_server.py."""

    def __init__(
        self,
        scripts: Path,
        runtime_base: Path,
        flags: tuple[str, ...],
        environ: dict[str, str],
        redirect: str,
        ignores_sighup: bool = False,
    ) -> None:
        self.scripts = scripts
        self.runtime_base = runtime_base
        self._ready_fd, theirs = os.pipe()
        argv = [sys.executable, str(SUPPORT / "scripted_server.py"), str(scripts), "--model", "random:tiny"]
        argv += ["--device", "sim", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
        argv += ["--ready-fd", str(theirs), *flags]
        if redirect:
            argv = ["bash", "-c", f'exec "$@" {redirect}', "bash", *argv]
        if ignores_sighup:
            argv = ["bash", "-c", "trap '' HUP; exec \"$@\"", "bash", *argv]
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PAGEWIRE_")}
        self.process = subprocess.Popen(
            argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=[theirs],
            env=clean | {"TMPDIR": str(runtime_base), "XDG_RUNTIME_DIR": "/nowhere"} | environ,
        )
        os.close(theirs)

    def ready(self) -> dict[str, Any]:
        """Wait until it says that it serves."""
        assert select.select([self._ready_fd], [], [], WAIT_S)[0], "not ready in time"
        line = os.read(self._ready_fd, 65536)
        assert line, f"ended before it was ready: {self.process.communicate(timeout=WAIT_S)}"
        return json.loads(line)

    def log(self) -> list[dict[str, Any]]:
        """What the children logged so far."""
        path = self.scripts / "log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def heard(self, who: str, what: str, incarnation: int = 0) -> dict[str, Any]:
        """Wait until a child logs this."""
        return wait_for(
            lambda: next(
                (e for e in self.log() if (e["who"], e["what"], e["incarnation"]) == (who, what, incarnation)), None
            ),
            f"{who} incarnation {incarnation} to log {what}",
        )

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Wait for its end; exit status, stdout, stderr."""
        out, err = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, out, err

    def child_pids(self) -> list[int]:
        return [entry["pid"] for entry in self.log() if entry["what"] == "started"]

    def clean_up(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        os.close(self._ready_fd)
        for pid in self.child_pids():
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
