"""An engine with a bug in its first incarnation or a worker with one in each, and a server with such a process.

python broken_engine.py engine BUG --launch FILE --lifeline-fd N
python broken_engine.py worker BUG --launch FILE --lifeline-fd N
python broken_engine.py BUG serve [serve's flags]

leak        of every sequence's blocks the last one is never given back
miscount    whatever leaves the queue is still counted, by a token
drip        the sim device ends by the second token that it draws with the seed POISON_SEED
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from pagewire.scheduler_svc import __main__ as server
from pagewire.scheduler_svc.engine import __main__ as engine
from pagewire.scheduler_svc.engine.block_manager import BlockManager
from pagewire.scheduler_svc.engine.queue_bounds import Amount
from pagewire.scheduler_svc.engine.wait_queue import WaitQueue
from pagewire.scheduler_svc.supervisor.server_plan import Commands
from pagewire.wire.columns import Int32Array
from pagewire.worker import __main__ as worker
from pagewire.worker.slots.state import Slots, Step

POISON_SEED = 666


def leak() -> None:
    release = BlockManager.release

    def leaking(self: BlockManager, sequence: Any, **options: bool) -> None:
        del sequence.blocks[-1:]
        release(self, sequence, **options)

    BlockManager.release = leaking  # type: ignore[method-assign]


def miscount() -> None:
    remove = WaitQueue.remove

    def miscounting(self: WaitQueue, sequence: Any) -> None:
        remove(self, sequence)
        self._bounds.total = self._bounds.total.plus(Amount(0, 1))

    WaitQueue.remove = miscounting  # type: ignore[method-assign]


def drip() -> None:
    record = Slots.record
    drawn = 0

    def dripping(self: Slots, step: Step, tokens: Int32Array) -> None:
        nonlocal drawn
        drawn += int((self.columns.sampling["seed"][step.sample_slots] == POISON_SEED).sum())
        if drawn > 1:
            os._exit(1)
        record(self, step, tokens)

    Slots.record = dripping  # type: ignore[method-assign]


def main() -> int:
    """As the real one."""
    if sys.argv[1] not in ("engine", "worker"):
        bug = sys.argv[1]
        role = "worker" if bug == "drip" else "engine"
        commands = Commands(**{role: (sys.executable, __file__, role, bug)})
        return server.main(sys.argv[2:], commands)
    role, bug = sys.argv[1:3]
    del sys.argv[1:3]
    if role == "worker":
        drip()
        return worker.main(["run", *sys.argv[1:]])
    launch = json.loads(Path(sys.argv[sys.argv.index("--launch") + 1]).read_bytes())
    if launch["incarnation"] == 0:
        {"leak": leak, "miscount": miscount}[bug]()
    return engine.main()


if __name__ == "__main__":
    sys.exit(main())
