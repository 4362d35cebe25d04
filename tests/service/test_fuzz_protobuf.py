"""Every method of every service, and the gateway, under messages that no client makes.

Ten seconds, or so many as PAGEWIRE_TEST_FUZZ_S says (`bash tests/run.sh faults` takes 600); PAGEWIRE_TEST_SEED draws
other attacks. What was sent is printed.
"""

import pytest
from support.fuzz_world import SECONDS, fuzz_world
from support.protobuf_attacks import ProtobufAttacks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 180)]


def test_no_message_disturbs_anybody(tmp_path_factory: pytest.TempPathFactory) -> None:
    with fuzz_world(tmp_path_factory.mktemp("model")) as world:
        attacks = ProtobufAttacks(world.service, world.pickle)
        own = {f"pagewire.v1.{name}Service" for name in ("Inference", "Model", "Admin")}
        assert own | {"vllm.grpc.engine.VllmEngine", "grpc.health.v1.Health"} <= attacks.services
        world.run(attacks.all, lambda: None)
