"""However a stream ends, its memory is free within two steps, and the pool is afterwards as it was."""

import threading
from collections.abc import Iterator

import grpc
import pytest
from support.service import LIMIT_S, Service, ids_of, serve, stream_request

from pagewire.v1 import inference_pb2_grpc

STEP_US = 200_000


@pytest.fixture(scope="module")
def slow_service() -> Iterator[Service]:
    """Steps of 200 ms, and a load message every 50 ms, so that steps can be counted from outside."""
    with serve(sim_step_us=STEP_US, load_interval_s=0.05, max_num_seqs=8) as service:
        yield service


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serve(load_interval_s=0.05, max_num_seqs=32) as service:
        yield service


def open_stream(
    stub: inference_pb2_grpc.InferenceServiceStub, timeout: float = LIMIT_S, tokens: int = 1000
) -> grpc.Call:
    call = stub.StreamGenerate(stream_request([1, 2, 3], stopping={"max_tokens": tokens}), timeout=timeout)
    assert next(call).HasField("started")
    return call


@pytest.mark.parametrize("how", ["cancel", "deadline", "closed channel"])
def test_an_abandoned_stream_frees_its_blocks_within_two_steps(slow_service: Service, how: str) -> None:
    company = open_stream(slow_service.inference)  # so that steps go on
    alone = slow_service.wait_for_load(lambda load: load.running_sequences == 1).used_blocks
    with grpc.insecure_channel(slow_service.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        call = open_stream(stub, timeout=1.0 if how == "deadline" else LIMIT_S)
        slow_service.wait_for_load(lambda load: load.running_sequences == 2)
        if how == "deadline":
            with pytest.raises(grpc.RpcError) as error:
                for _ in call:
                    pass
            assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        elif how == "cancel":
            call.cancel()
        else:
            channel.close()
        before = slow_service.load()
        # The company's own block table grows by a block every so many steps, hence "at most one more".
        after = before
        while after.running_sequences == 2:
            after = slow_service.load()
        assert after.steps - before.steps <= 2
        assert after.used_blocks <= alone + 1
    company.cancel()
    slow_service.wait_for_load(lambda load: load.running_sequences == 0 and load.used_blocks == 0)


def test_after_a_thousand_abandoned_requests_the_pool_is_as_it_was(service: Service) -> None:
    before = service.load()
    assert (before.running_sequences, before.used_blocks) == (0, 0)
    failures: list[str] = []

    def abandon(kind: int) -> None:
        with grpc.insecure_channel(service.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            for index in range(125):
                request = stream_request(
                    [1 + index, 2, 3], stopping={"max_tokens": 2000, "ignore_eos": True}, n=1 + index % 2
                )
                call = stub.StreamGenerate(request, timeout=0.02 if kind % 3 == 0 else LIMIT_S)
                try:
                    for count, _ in enumerate(call):
                        if count == index % 4 and kind % 3 != 0:
                            call.cancel()
                except grpc.RpcError as error:
                    if error.code() not in (grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED):
                        failures.append(str(error))
                else:
                    failures.append("a stream that was abandoned ended with OK")
            # Two more are under way when the channel closes.
            for _ in range(2):
                stub.StreamGenerate(stream_request([7, 8], stopping={"max_tokens": 2000, "ignore_eos": True}))

    threads = [threading.Thread(target=abandon, args=(kind,)) for kind in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert not failures
    after = service.wait_for_load(
        lambda load: load.running_sequences == load.waiting_sequences == load.used_blocks == 0
    )
    assert after.dropped_frames == before.dropped_frames
    assert len(ids_of(service.inference.StreamGenerate(stream_request([1, 2], stopping={"max_tokens": 5})))) == 5


def test_bad_requests_get_their_status_and_disturb_no_stream(service: Service) -> None:
    wanted = stream_request([5, 6, 7], stopping={"max_tokens": 400, "ignore_eos": True}, sampling={"seed": 9})
    expected = ids_of(service.inference.StreamGenerate(wanted))
    running = service.inference.StreamGenerate(wanted)
    assert next(running).HasField("started")
    raw = service.channel.unary_stream("/pagewire.v1.InferenceService/StreamGenerate")
    bad: list[tuple[object, grpc.StatusCode, str]] = [
        (stream_request([10**9]), grpc.StatusCode.INVALID_ARGUMENT, "prompt.token_ids"),
        (stream_request([1], stopping={"max_tokens": 10**6}), grpc.StatusCode.INVALID_ARGUMENT, "max_tokens"),
        (stream_request([1], sampling={"temperature": float("nan")}), grpc.StatusCode.INVALID_ARGUMENT, "temperature"),
        (stream_request([1], sampling={"min_p": 1.5}), grpc.StatusCode.INVALID_ARGUMENT, "min_p"),
        (stream_request([1], n=1000), grpc.StatusCode.INVALID_ARGUMENT, "n"),
        (stream_request([1], model="another"), grpc.StatusCode.NOT_FOUND, "another"),
        (stream_request([1] * 5_000_000), grpc.StatusCode.RESOURCE_EXHAUSTED, ""),
    ]
    for request, code, name in bad:
        with pytest.raises(grpc.RpcError) as error:
            next(service.inference.StreamGenerate(request, timeout=LIMIT_S))
        assert error.value.code() is code, error.value
        assert name in error.value.details()
    for frame in (b"\xff\xff\xff", b"\x0a\x05abc"):
        with pytest.raises(grpc.RpcError) as error:
            next(raw(frame, timeout=LIMIT_S))
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert ids_of(running) == expected
