"""Whether a device's result is what another runner gave."""

import numpy as np

from pagewire.wire.columns import unpack, unpack_floats
from pagewire.wire.plan import StepResult
from pagewire.worker.immediate import Sampled, step_result

_TOLERANCE = 2e-5
"""Of log-probabilities in fp32, whose sums are taken in another order."""


def assert_same(result: StepResult, sampled: Sampled) -> None:
    """The same tokens, failures and ids; log-probabilities within what the order of sums makes of them."""
    expected = step_result(result.epoch, result.step_id, sampled, busy_us=0, idle_us=0)
    assert unpack(result.tokens).tolist() == unpack(expected.tokens).tolist(), f"step {result.step_id}"
    assert result.failures == expected.failures
    assert [each.row for each in result.logprobs] == [each.row for each in expected.logprobs]
    for ours, theirs in zip(result.logprobs, expected.logprobs, strict=True):
        _assert_close(np.float32([ours.chosen]).tobytes(), np.float32([theirs.chosen]).tobytes())
        _assert_close(ours.values, theirs.values)
        _assert_likeliest(ours.ids, theirs.ids, theirs.values)
    places = [(each.chunk, each.position) for each in expected.prompt_logprobs]
    assert [(each.chunk, each.position) for each in result.prompt_logprobs] == places
    for ours_, theirs_ in zip(result.prompt_logprobs, expected.prompt_logprobs, strict=True):
        _assert_close(ours_.chosen, theirs_.chosen)
        _assert_close(ours_.values, theirs_.values)
        _assert_likeliest(ours_.ids, theirs_.ids, theirs_.values)


def _assert_close(ours: bytes, theirs: bytes) -> None:
    np.testing.assert_allclose(unpack_floats(ours), unpack_floats(theirs), rtol=_TOLERANCE, atol=_TOLERANCE)


def _assert_likeliest(ours: bytes, theirs: bytes, values: bytes) -> None:
    """Ids whose values are as good as equal may stand in either order."""
    ids, expected = unpack(ours), unpack(theirs)
    logprobs = unpack_floats(values)
    for place in np.flatnonzero(ids != expected).tolist():
        near = np.isclose(logprobs, logprobs[place], rtol=_TOLERANCE, atol=_TOLERANCE)
        assert ids[place] in expected[near], f"{ids} where {expected} were expected, with {logprobs}"
