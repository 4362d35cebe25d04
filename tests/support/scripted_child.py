"""A child process that follows a script instead of doing work: it speaks the lifeline as real children do.

    python scripted_child.py ROLE SCRIPT_DIR --launch FILE --lifeline-fd N
    python scripted_child.py ROLE SCRIPT_DIR --requests-fd N     forks such children

SCRIPT_DIR/ROLE holds words; the process looks at it once, when it starts:

    ready (default)     says Ready at once
    load                says Loading and never Ready
    fail                says Failed and ends with status 1
    die                 ends with status 3 at once
    deaf                says Ready, and ignores Stop and Drain
    leave               says Ready, and after it has drained ends with status 3
    still               says Ready, and then never that it is alive
    nosy                says Ready, then asks for a drain
    once:WORD           follows WORD in its first incarnation only

SIGUSR1, after a child has logged that it is ready, makes it ask for a drain; SIGUSR2 makes it say that a step is
overdue. Everything it does and hears is appended
to SCRIPT_DIR/log as lines of JSON, one write each. It ends at once with status 70 when its supervisor goes away.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import msgspec

from pagewire.wire.control import Drain, Drained, DrainRequested, Failed, Loading, Ready, StepOverdue, Stop
from pagewire.wire.fork_server import ForkServer
from pagewire.wire.lifeline import ORPHANED_STATUS, Lifeline


def beat(lifeline: Lifeline) -> None:
    while True:
        lifeline.beat()
        time.sleep(0.2)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("role")
    parser.add_argument("scripts", type=Path)
    parser.add_argument("--launch", type=Path)
    parser.add_argument("--lifeline-fd", type=int)
    parser.add_argument("--requests-fd", type=int)
    arguments = parser.parse_args()
    if arguments.requests_fd is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        start = ForkServer(arguments.requests_fd).serve(lambda: None)
        if start is None:
            return 0
        arguments.launch, arguments.lifeline_fd = start
    launch = json.loads(arguments.launch.read_bytes())
    lifeline = Lifeline(arguments.lifeline_fd)
    log = os.open(arguments.scripts / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    name = f"{arguments.role}-{launch.get('index', launch.get('rank', 0))}"

    def say(what: str, **more: object) -> None:
        entry = {"who": name, "what": what, "incarnation": launch["incarnation"], "pid": os.getpid(), **more}
        os.write(log, json.dumps(entry).encode() + b"\n")

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, lambda *_: lifeline.send(DrainRequested(7.0)))

    def find_overdue(*_: object) -> None:
        """Always the first workers' step."""
        lifeline.send(StepOverdue(7.0, incarnation=0))
        say("overdue")

    signal.signal(signal.SIGUSR2, find_overdue)
    script_file = arguments.scripts / arguments.role
    script = script_file.read_text() if script_file.exists() else "ready"
    if script.startswith("once:"):
        script = script.removeprefix("once:") if launch["incarnation"] == 0 else "ready"
    say("started", launch=launch, group=os.getpgrp())
    match script:
        case "die":
            return 3
        case "fail":
            lifeline.send(Failed("the script says so"))
            return 1
        case "load":
            lifeline.send(Loading("pretending", 0.5))
        case _:
            listen = launch.get("listen", "").replace(":0", ":40001")
            admin = (launch.get("admin_listen") or "").replace(":0", ":40002")
            for endpoint in ("frontends", "workers"):
                address = launch[endpoint]["address"] if arguments.role == "engine" else ""
                if address.startswith("ipc://"):  # a socket, to the supervisor
                    Path(address.removeprefix("ipc://")).touch(mode=0o600)
            lifeline.send(Ready(listen, admin, 64 if arguments.role == "worker" else 0))
            say("ready")  # from here on the main thread sends nothing, for which a signal's handler would wait
            if script != "still":
                threading.Thread(target=beat, args=(lifeline,), daemon=True).start()
            if script == "nosy":
                lifeline.send(DrainRequested(7.0))
    try:
        while True:
            for command in lifeline.receive(None):
                say(type(command).__name__, **msgspec.to_builtins(command))
                match command:
                    case Stop() if script != "deaf":
                        return 0
                    case Drain() if script != "deaf" and arguments.role == "frontend":
                        lifeline.send(Drained(0))
                        if script == "leave":
                            return 3
    except EOFError:
        say("orphaned")
        return ORPHANED_STATUS


if __name__ == "__main__":
    sys.exit(main())
