"""Bystanders: streams that are asked for again and again while somebody else does what he should not, and what they
must answer. One that gets another token, or an error, has been disturbed."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from support.service import LIMIT_S, Service, generation

from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2


class Bystanders:
    """So many of them, drawing, penalized, restricted and asking for log-probabilities in turn."""

    def __init__(self, service: Service, count: int) -> None:
        self._service = service
        self.expected = [self.answer(index) for index in range(count)]
        self.wrong: list[str] = []
        self.turned_away = 0
        """Calls that gRPC's own server turned away, with CANCELLED and before any service saw them: it does while
        thousands of others wait."""

    def answer(self, index: int) -> bytes:
        """One's tokens, each whole. A call that is turned away is made again; a stream that has begun must not end."""
        while True:
            tokens: list[bytes] = []
            try:
                self._read(index, tokens)
            except grpc.RpcError as error:
                if tokens or error.code() is not grpc.StatusCode.CANCELLED:
                    raise
                self.turned_away += 1
                continue
            return b"".join(tokens)

    def _read(self, index: int, tokens: list[bytes]) -> None:
        sampling: dict[str, object] = {"temperature": 1.1, "seed": index}
        if index % 4 == 1:
            sampling |= {"presence_penalty": 0.5, "repetition_penalty": 1.2, "logit_bias": {7: 2.0}}
        if index % 4 == 2:
            sampling |= {"allowed_token_ids": range(40, 200), "min_p": 0.02}
        request = generation(
            [index % 50 + 1] * (index % 7 + 1),
            sampling=sampling,
            stopping={"max_tokens": 24, "ignore_eos": True},
            output=pb.Output(logprobs=index % 4 == 3, num_candidates=3 * (index % 4 == 3)),
        )
        stream = inference_pb2.StreamGenerateRequest(generation=request)
        for event in self._service.inference.StreamGenerate(stream, timeout=LIMIT_S):
            tokens += [token.SerializeToString(deterministic=True) for token in event.delta.tokens]

    @contextmanager
    def watching(self) -> Iterator[list[int]]:
        """Ask all the time. What is given holds, when this has ended, how often each of them was answered."""
        is_over = threading.Event()
        counts: list[int] = []

        def keep_asking(index: int) -> int:
            count = 0
            while not is_over.is_set() or not count:
                try:
                    if self.answer(index) != self.expected[index]:
                        self.wrong.append(f"bystander {index} got something else")
                except Exception as error:
                    self.wrong.append(f"bystander {index} got {error!r}")
                    return count
                count += 1
            return count

        with ThreadPoolExecutor(len(self.expected)) as threads:
            asked: list[Future[int]] = [threads.submit(keep_asking, index) for index in range(len(self.expected))]
            try:
                yield counts
            finally:
                is_over.set()
                counts += [future.result(LIMIT_S) for future in asked]
