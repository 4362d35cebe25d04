"""The gRPC listeners of a running service, the operators' too, under HTTP/2 that no client speaks.

Ten seconds, or so many as PAGEWIRE_TEST_FUZZ_S says (`bash tests/run.sh faults` takes 600); PAGEWIRE_TEST_SEED draws
other attacks. What was sent is printed.
"""

import pytest
from support.fuzz_world import MAX_MODEL_LEN, SECONDS, fuzz_world
from support.http2_attacks import Http2Attacks
from support.service import stream_request

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 180)]


def test_no_connection_disturbs_anybody(tmp_path_factory: pytest.TempPathFactory) -> None:
    request = stream_request([1, 2, 3], stopping={"max_tokens": MAX_MODEL_LEN - 3, "ignore_eos": True})
    with fuzz_world(tmp_path_factory.mktemp("model")) as world:
        addresses = [world.service.address, world.service.admin_address]
        attacks = Http2Attacks(addresses, request, world.pickle)
        world.run(attacks.all, when_over=attacks.close)
