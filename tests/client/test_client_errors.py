"""From gRPC statuses with details to the exception tree, over a real connection."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from support.scripted_service import ScriptedService, status, unavailable

from pagewire.client import (
    NO_RETRY,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    PagewireError,
    PermissionDenied,
    ProtocolError,
    ServerError,
    TooLarge,
    Unauthenticated,
    Unavailable,
    errors,
)

Code = grpc.StatusCode


def test_every_status_has_its_place() -> None:
    assert set(errors._BY_STATUS) == set(grpc.StatusCode)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.INVALID_ARGUMENT, InvalidRequest),
        (Code.OUT_OF_RANGE, InvalidRequest),
        (Code.NOT_FOUND, NotFound),
        (Code.RESOURCE_EXHAUSTED, Overloaded),
        (Code.UNAVAILABLE, Unavailable),
        (Code.DEADLINE_EXCEEDED, DeadlineExceeded),
        (Code.UNAUTHENTICATED, Unauthenticated),
        (Code.PERMISSION_DENIED, PermissionDenied),
        (Code.CANCELLED, Unavailable),  # it was not this program that cancelled it
        (Code.INTERNAL, ServerError),
        (Code.UNKNOWN, ServerError),
        (Code.UNIMPLEMENTED, ProtocolError),
    ],
)
def test_status_without_details(service: ScriptedService, code: grpc.StatusCode, kind: type[PagewireError]) -> None:
    service.failures = [status(code, "because of this")]
    with (
        Client(service.address, retry=NO_RETRY) as client,
        pytest.raises(PagewireError, match="because of this") as caught,
    ):
        client.generate("hi")
    assert type(caught.value) is kind
    assert isinstance(caught.value.__cause__, grpc.RpcError)


def failure(service: ScriptedService, *details: Any, code: grpc.StatusCode) -> PagewireError:
    service.failures = [status(code, "no", *details)]
    with Client(service.address, retry=NO_RETRY) as client, pytest.raises(PagewireError) as caught:
        client.stream("hi").result()
    return caught.value


def test_the_field_of_a_bad_request(service: ScriptedService) -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(field="generation.sampling.top_p", description="no")
    error = failure(service, error_details_pb2.BadRequest(field_violations=[violation]), code=Code.INVALID_ARGUMENT)
    assert isinstance(error, InvalidRequest)
    assert error.field == "generation.sampling.top_p"


def test_the_delay_of_an_overload(service: ScriptedService) -> None:
    retry = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000))
    error = failure(service, retry, code=Code.RESOURCE_EXHAUSTED)
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == 2.5


def test_reason_and_delay_of_unavailable(service: ScriptedService) -> None:
    service.failures = [unavailable("DRAINING", 0.25)]
    with Client(service.address, retry=NO_RETRY) as client, pytest.raises(Unavailable) as caught:
        client.generate("hi")
    assert (caught.value.reason, caught.value.retry_after_s) == ("DRAINING", 0.25)


TORN_DETAIL = any_pb2.Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff\xff")


@pytest.mark.parametrize("value", [b"\xff\xff\xff", status_pb2.Status(details=[TORN_DETAIL]).SerializeToString()])
def test_details_that_do_not_decode_are_left_out(value: bytes) -> None:
    class Broken(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return Code.UNAVAILABLE

        def details(self) -> str:
            return "away"

        def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
            return (("grpc-status-details-bin", value),)

    error = errors.from_rpc_error(Broken())
    assert isinstance(error, Unavailable)
    assert (str(error), error.reason) == ("away", "")


def test_a_message_over_the_limit_is_the_requests_fault(service: ScriptedService) -> None:
    with (
        Client(service.address, max_message_bytes=2000) as client,
        pytest.raises(TooLarge, match="at most 2000"),
    ):
        client.generate("x" * 4000)
    assert service.seen == []


def test_nobody_listens() -> None:
    with Client("127.0.0.1:1", retry=NO_RETRY) as client, pytest.raises(Unavailable) as caught:
        client.models()
    assert caught.value.reason == ""


def test_a_key_that_no_header_can_carry() -> None:
    with pytest.raises(InvalidRequest, match="api_key"):
        Client("127.0.0.1:1", api_key="schlüssel\n")
