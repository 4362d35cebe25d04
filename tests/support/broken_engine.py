"""An engine with a bug in its first incarnation, and a server with such an engine.

python broken_engine.py engine BUG --launch FILE --lifeline-fd N
python broken_engine.py BUG serve [serve's flags]

leak        of every sequence's blocks the last one is never given back
miscount    whatever leaves the queue is still counted, by a token
"""

import json
import sys
from pathlib import Path
from typing import Any

from pagewire.scheduler_svc import __main__ as server
from pagewire.scheduler_svc.engine import __main__ as engine
from pagewire.scheduler_svc.engine.block_manager import BlockManager
from pagewire.scheduler_svc.engine.queue_bounds import Amount
from pagewire.scheduler_svc.engine.wait_queue import WaitQueue
from pagewire.scheduler_svc.supervisor.server_plan import Commands


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


def main() -> int:
    """As the real one."""
    if sys.argv[1] != "engine":
        commands = Commands(engine=(sys.executable, __file__, "engine", sys.argv[1]))
        return server.main(sys.argv[2:], commands)
    bug = sys.argv[2]
    del sys.argv[1:3]
    launch = json.loads(Path(sys.argv[sys.argv.index("--launch") + 1]).read_bytes())
    if launch["incarnation"] == 0:
        {"leak": leak, "miscount": miscount}[bug]()
    return engine.main()


if __name__ == "__main__":
    sys.exit(main())
