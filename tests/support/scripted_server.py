"""`pagewire serve` with scripted children: python scripted_server.py SCRIPT_DIR [serve's flags]."""

import sys
from pathlib import Path

from pagewire.scheduler_svc.__main__ import main
from pagewire.scheduler_svc.supervisor.server_plan import Commands

if __name__ == "__main__":
    scripts = sys.argv[1]
    child = str(Path(__file__).with_name("scripted_child.py"))
    commands = Commands(
        worker=(sys.executable, child, "worker", scripts),
        engine=(sys.executable, child, "engine", scripts),
        frontend_forks=(sys.executable, child, "frontend", scripts),
    )
    sys.exit(main(["serve", *sys.argv[2:]], commands))
