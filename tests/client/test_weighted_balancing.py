"""Load reports at work: gRPC's own weighted round robin gives the faster of two servers more of the calls."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import grpc
import pytest
from support.service import Service, generation, serve

from pagewire.v1 import inference_pb2, inference_pb2_grpc

TOKENS = 10
CALLS = 300
CALLERS = 8
SLOW_STEP_US, FAST_STEP_US = 20_000, 2_000
"""A call takes 0.2 s of the one and 0.02 s of the other."""

pytestmark = pytest.mark.slow


def weighted_round_robin() -> str:
    """The service config: weights are taken up at once, and every tenth of a second."""
    policy = {"blackoutPeriod": "0s", "weightUpdatePeriod": "0.1s", "errorUtilizationPenalty": 1.0}
    return json.dumps({"loadBalancingConfig": [{"weighted_round_robin": policy}]})


def answered(service: Service) -> int:
    return service.load().output_tokens // TOKENS


def shares(*, with_reports: bool) -> tuple[int, int]:
    """Of calls that come after the weights are there: how many the slow and the fast server got."""
    settings = {"orca_load_reports": with_reports, "load_interval_s": 0.05}
    with ExitStack() as stack:
        slow = stack.enter_context(serve(sim_step_us=SLOW_STEP_US, **settings))
        fast = stack.enter_context(serve(sim_step_us=FAST_STEP_US, **settings))
        channel = stack.enter_context(
            grpc.insecure_channel(
                f"ipv4:{slow.address},{fast.address}", options=[("grpc.service_config", weighted_round_robin())]
            )
        )
        callers = stack.enter_context(ThreadPoolExecutor(CALLERS))
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        request = inference_pb2.GenerateRequest(generation=generation(stopping={"max_tokens": TOKENS}))

        def call(_number: int) -> None:
            assert len(stub.Generate(request, timeout=60, wait_for_ready=True).outputs[0].tokens) == TOKENS

        list(callers.map(call, range(CALLS)))
        before = (answered(slow), answered(fast))
        list(callers.map(call, range(CALLS)))
        total = 2 * CALLS * TOKENS
        slow.wait_for_load(lambda load: load.output_tokens + fast.load().output_tokens == total)
        return answered(slow) - before[0], answered(fast) - before[1]


def test_the_faster_server_gets_more_of_the_calls() -> None:
    slow, fast = shares(with_reports=True)
    assert fast > 2 * slow, f"{slow} calls of the slow server and {fast} of the fast one"


def test_without_reports_both_get_as_many() -> None:
    slow, fast = shares(with_reports=False)
    assert abs(fast - slow) < CALLS // 10, f"{slow} calls of the slow server and {fast} of the fast one"
