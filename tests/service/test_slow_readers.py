"""Clients that read slowly or never, beside others: theirs are paused, and no one else notices."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from support.service import LIMIT_S, Service, ids_of, serve, stream_request

from pagewire.v1 import inference_pb2_grpc

NUM_TOKENS = 1500
"""More than a connection's window takes in."""
WINDOW = (("grpc.http2.lookahead_bytes", 2048), ("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1))


def request(seed: int, n: int = 1) -> Any:
    stopping = {"max_tokens": NUM_TOKENS, "ignore_eos": True}
    return stream_request([4, 5], stopping=stopping, sampling={"seed": seed}, n=n)


def open_stream(service: Service, seed: int, n: int = 1) -> Iterator[Any]:
    """A call on a connection of its own, which takes little unread."""
    stub = inference_pb2_grpc.InferenceServiceStub(grpc.insecure_channel(service.address, options=WINDOW))
    call = stub.StreamGenerate(request(seed, n), timeout=3 * LIMIT_S)
    assert next(call).HasField("started")
    return call


def read_slowly(call: Iterator[Any], into: list[list[int]]) -> None:
    """All ids, by output."""
    for event in call:
        if event.HasField("delta"):
            into[event.delta.output] += [token.id for token in event.delta.tokens]
        time.sleep(0.002)


@pytest.mark.slow
def test_slow_readers_get_all_in_the_end_and_one_that_never_reads_is_ended() -> None:
    with serve(
        "random:qwen3-0.6b", max_model_len=4096, stream_buffer_tokens=64, slow_reader_timeout_s=8, max_num_seqs=8
    ) as service:
        expected = [ids_of(service.inference.StreamGenerate(request(seed), timeout=LIMIT_S)) for seed in range(6)]
        never = open_stream(service, 0)
        slow = [open_stream(service, 1), open_stream(service, 2, n=2)]
        rests = service.wait_for_load(lambda load: load.paused_sequences == 4)
        assert rests.running_sequences == rests.waiting_sequences == rests.used_blocks == 0
        got: list[list[list[int]]] = [[[]], [[], []]]
        readers = [threading.Thread(target=read_slowly, args=each) for each in zip(slow, got, strict=True)]
        for reader in readers:
            reader.start()
        fast = [service.inference.StreamGenerate(request(seed), timeout=LIMIT_S) for seed in (4, 5)]
        assert [ids_of(call) for call in fast] == expected[4:]
        for reader in readers:
            reader.join(LIMIT_S)
        # The second output's seed is the first's and one.
        assert got == [[expected[1]], [expected[2], expected[3]]]
        ended = service.wait_for_load(lambda load: load.paused_sequences == 0)
        assert ended.running_sequences == ended.waiting_sequences == ended.used_blocks == 0
        with pytest.raises(grpc.RpcError) as error:
            list(never)
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "slow_reader_timeout_s" in (error.value.details() or "")


@pytest.mark.slow
def test_a_paused_stream_outlives_its_engine_and_its_worker() -> None:
    with serve("random:qwen3-0.6b", max_model_len=4096, stream_buffer_tokens=64) as service:
        expected = [ids_of(service.inference.StreamGenerate(request(seed), timeout=LIMIT_S)) for seed in (2, 3)]
        call = open_stream(service, 2, n=2)
        before = service.wait_for_load(lambda load: load.paused_sequences == 2)
        service.children()["engine"].kill()
        again = service.wait_for_load(lambda load: load.paused_sequences == 2 and load.steps < before.steps)
        assert again.used_blocks == again.running_sequences == again.waiting_sequences == 0
        service.children()["worker"].kill()
        got: list[list[int]] = [[], []]
        read_slowly(call, got)
        assert got == expected
