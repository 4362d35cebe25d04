"""A real gRPC server of AdminService, in this process, whose engine takes a step with every load that is asked for."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Self

import grpc

from pagewire.v1 import admin_pb2 as pb
from pagewire.v1 import admin_pb2_grpc

OPERATOR, TENANT = "sk-operator", "sk-tenant"
_LIMIT_S = 20.0


class ScriptedAdmin(admin_pb2_grpc.AdminServiceServicer):
    """Use it in a `with`. It answers `OPERATOR` alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.open: dict[str, int] = {"load": 0, "blocks": 0}
        """Streams that are being read, by kind."""
        self.steps = 0
        self._server = grpc.server(ThreadPoolExecutor(16))
        admin_pb2_grpc.add_AdminServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.stop(None).wait()

    def step(self) -> None:
        """Every reader of loads is sent one more."""
        with self._changed:
            self.steps += 1
            self._changed.notify_all()

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Until that holds. Raises AssertionError."""
        with self._changed:
            assert self._changed.wait_for(holds, _LIMIT_S), f"{self.open} streams are open"

    def GetLoad(self, request: pb.GetLoadRequest, context: Any) -> pb.GetLoadResponse:
        _check(context)
        return pb.GetLoadResponse(load=pb.Load(steps=self.steps))

    def WatchLoad(self, request: pb.WatchLoadRequest, context: Any) -> Iterator[pb.WatchLoadResponse]:
        _check(context)
        with self._counted("load", context) as is_open:
            told = -1
            while is_open():
                with self._changed:
                    self._changed.wait_for(lambda: self.steps > told or not is_open(), 0.1)  # noqa: B023
                    steps = self.steps
                if steps > told:
                    told = steps
                    yield pb.WatchLoadResponse(load=pb.Load(state=pb.SERVICE_STATE_READY, steps=steps))

    def WatchBlocks(self, request: pb.WatchBlocksRequest, context: Any) -> Iterator[pb.WatchBlocksResponse]:
        _check(context)
        with self._counted("blocks", context) as is_open:
            yield pb.WatchBlocksResponse(uses=b"\x00\x01\xff", total_blocks=3)
            while is_open():
                time.sleep(0.05)

    @contextmanager
    def _counted(self, kind: str, context: Any) -> Iterator[Callable[[], bool]]:
        with self._changed:
            self.open[kind] += 1
            self._changed.notify_all()
        try:
            yield context.is_active
        finally:
            with self._changed:
                self.open[kind] -= 1
                self._changed.notify_all()


def _check(context: Any) -> None:
    key = dict(context.invocation_metadata()).get("authorization")
    if key is None:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "no key")
    if key != f"Bearer {OPERATOR}":
        code = grpc.StatusCode.PERMISSION_DENIED if key == f"Bearer {TENANT}" else grpc.StatusCode.UNAUTHENTICATED
        context.abort(code, "not with this key")
