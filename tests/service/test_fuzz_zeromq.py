"""Every ZeroMQ socket of a running service under what strangers, impostors and broken peers send.

Ten seconds, or so many as PAGEWIRE_TEST_FUZZ_S says (`bash tests/run.sh faults` takes 600); PAGEWIRE_TEST_SEED draws
other attacks. What was sent is printed.
"""

import pytest
from support.fuzz_world import SECONDS, fuzz_world
from support.zeromq_attacks import ZeroMqAttacks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 180)]


BYTES_OF_A_CONNECTION = 4096
"""What libzmq 4.3.5 may keep of one that has gone: 1 KB of most that were let in, nothing of those that were not."""


def test_no_frame_disturbs_anybody(tmp_path_factory: pytest.TempPathFactory) -> None:
    with fuzz_world(tmp_path_factory.mktemp("model")) as world:
        attacks = ZeroMqAttacks(world.runtime_dir, world.pickle)
        world.run(attacks.all, attacks.close, bytes_each=BYTES_OF_A_CONNECTION, a_second=300)
        counted = world.service.load().dropped_by_kind
        for kind in ("malformed", "unknown", "replayed", "unfit"):
            assert counted[f"frontends.{kind}"], kind
        for border in ("frontends", "workers"):
            assert counted[f"{border}.refused_connections"], border
        assert counted["workers.unknown"]
