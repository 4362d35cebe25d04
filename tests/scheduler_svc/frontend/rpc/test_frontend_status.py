"""The exception tree and its one map to gRPC statuses."""

import base64
import urllib.parse

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2

from pagewire.scheduler_svc.frontend import errors
from pagewire.scheduler_svc.frontend.rpc.status import to_status

EXAMPLES: dict[type[errors.PagewireError], tuple[errors.PagewireError, int, list[str]]] = {
    errors.InvalidArgument: (errors.InvalidArgument("a.b", "is 3"), code_pb2.INVALID_ARGUMENT, ["BadRequest"]),
    errors.NotFound: (errors.NotFound("no x"), code_pb2.NOT_FOUND, []),
    errors.ResourceExhausted: (
        errors.ResourceExhausted("full", 2.0, errors.Exhausted.QUEUE),
        code_pb2.RESOURCE_EXHAUSTED,
        ["RetryInfo"],
    ),
    errors.Unavailable: (
        errors.Unavailable(errors.UnavailableReason.WORKER_LOST, "gone", 1.0),
        code_pb2.UNAVAILABLE,
        ["ErrorInfo", "RetryInfo"],
    ),
    errors.DeadlineExceeded: (errors.DeadlineExceeded("late"), code_pb2.DEADLINE_EXCEEDED, []),
    errors.Unauthenticated: (errors.Unauthenticated("who"), code_pb2.UNAUTHENTICATED, []),
    errors.PermissionDenied: (errors.PermissionDenied("no"), code_pb2.PERMISSION_DENIED, []),
    errors.OutOfRange: (errors.OutOfRange("gone"), code_pb2.OUT_OF_RANGE, []),
    errors.KvEventsLost: (errors.KvEventsLost("a gap"), code_pb2.DATA_LOSS, []),
    errors.Unimplemented: (errors.Unimplemented("not here"), code_pb2.UNIMPLEMENTED, []),
    errors.ModelFailed: (errors.ModelFailed("NaN"), code_pb2.INTERNAL, []),
    errors.InternalError: (errors.InternalError("secret"), code_pb2.INTERNAL, []),
}


def leaves(kind: type[errors.PagewireError]) -> set[type[errors.PagewireError]]:
    below = kind.__subclasses__()
    return {kind} if not below else set().union(*[leaves(part) for part in below])


def test_the_map_covers_the_tree() -> None:
    assert leaves(errors.PagewireError) == set(EXAMPLES)
    for error, code, details in EXAMPLES.values():
        status = to_status(error)
        assert status.code == code
        assert [detail.type_url.rpartition(".")[2] for detail in status.details] == details


def test_a_class_that_the_map_does_not_know_is_our_own_error() -> None:
    with pytest.raises(errors.InternalError):
        to_status(errors.PagewireError("new"))


def test_details_say_field_delay_and_reason() -> None:
    bad, info, retry = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    to_status(errors.InvalidArgument("a.b", "is 3; its range is 1 to 2")).details[0].Unpack(bad)
    (violation,) = bad.field_violations
    assert (violation.field, violation.description) == ("a.b", "a.b is 3; its range is 1 to 2")
    for reason in errors.UnavailableReason:
        status = to_status(errors.Unavailable(reason, "x", 0.25))
        status.details[0].Unpack(info)
        assert (info.reason, info.domain) == (reason.name, "pagewire")
        status.details[1].Unpack(retry)
        assert retry.retry_delay.ToMilliseconds() == 250
    assert not to_status(errors.Unavailable(errors.UnavailableReason.DRAINING, "x")).details[1:]


@pytest.mark.parametrize("letter", ["x", "é", "漢", "🙂"])
def test_a_status_fits_into_metadata_whatever_the_request_held(letter: str) -> None:
    status = to_status(errors.InvalidArgument(letter * 100_000, letter * 100_000))
    assert status.message.endswith("…")
    encoded = len(urllib.parse.quote(status.message)) + len(base64.b64encode(status.SerializeToString()))
    assert encoded < 8192 - 1024  # gRPC's soft limit on what a client accepts, less some for other metadata


def test_an_internal_error_tells_the_client_nothing() -> None:
    assert "secret" not in to_status(errors.InternalError("secret")).message
    assert grpc.StatusCode.INTERNAL.value[0] == code_pb2.INTERNAL
