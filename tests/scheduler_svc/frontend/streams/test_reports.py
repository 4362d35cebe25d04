"""Log-probabilities on their way to the client: each with its own token, a prompt's once and in order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagewire.scheduler_svc.frontend.streams.logprobs import PromptReport, ReportSettings, TokenReports
from pagewire.v1 import generation_pb2 as pb
from pagewire.wire.columns import pack
from pagewire.wire.plan import NO_TOKEN
from pagewire.wire.requests import PromptLogprobs, TokenLogprobs


def floats(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def bytes_of(token: int) -> bytes:
    return b"<%d>" % token


def test_candidates_and_named_ids_stand_apart_and_what_is_none_is_left_out() -> None:
    reports = TokenReports(ReportSettings(True, 2, bytes_of))
    reports.put(TokenLogprobs(0, -1.5, pack([4, NO_TOKEN, 9, 9]), floats(-1.5, -np.inf, -np.inf, -3)))
    entry = pb.Token()
    reports.take(entry)
    assert entry.logprob == -1.5
    assert [(each.id, each.bytes, each.logprob) for each in entry.candidates] == [(4, b"<4>", -1.5)]
    assert [(each.id, each.logprob) for each in entry.named] == [(9, -np.inf), (9, -3)]


def test_tokens_that_leave_together_have_each_their_own() -> None:
    reports = TokenReports(ReportSettings(True, 0, bytes_of))
    for index in range(3):
        reports.put(TokenLogprobs(index, -index, b"", b""))
    entries = [pb.Token() for _ in range(3)]
    for entry in entries:
        reports.take(entry)
    assert [entry.logprob for entry in entries] == [0, -1, -2]


def test_a_log_probability_that_is_not_wanted_is_not_there() -> None:
    reports = TokenReports(ReportSettings(False, 1, bytes_of))
    reports.put(TokenLogprobs(0, -1, pack([4]), floats(-1)))
    entry = pb.Token()
    reports.take(entry)
    assert not entry.HasField("logprob")
    assert len(entry.candidates) == 1


@given(num_ids=st.integers(1, 40), cuts=st.lists(st.integers(1, 12), max_size=60), restarts=st.sets(st.integers(0, 60)))
def test_a_prompt_comes_once_and_in_order_whatever_comes_again(
    num_ids: int, cuts: list[int], restarts: set[int]
) -> None:
    ids = [100 + i for i in range(num_ids)]
    report = PromptReport(ids, None, want_token_ids=True, num_candidates=1, bytes_of=bytes_of)
    told = report.first()
    position = 1
    for index, cut in enumerate([*cuts, *[12] * 6]):
        if index in restarts and index < len(cuts):
            position = 1
        end = min(num_ids, position + cut)
        span = range(position, end)
        told += report.take(
            PromptLogprobs(1, position, floats(*(-p for p in span)), pack(list(span)), floats(*(-p for p in span)))
        )
        position = end
    assert [token.id for token in told] == ids
    assert report.is_complete
    assert not told[0].HasField("logprob")
    assert [token.logprob for token in told[1:]] == [-p for p in range(1, num_ids)]
    assert [token.candidates[0].id for token in told[1:]] == list(range(1, num_ids))


def test_scores_with_a_gap_or_past_the_prompt_are_refused() -> None:
    for position, count in ((2, 1), (1, 3)):
        report = PromptReport([1, 2, 3], None, want_token_ids=True, num_candidates=0, bytes_of=bytes_of)
        report.first()
        with pytest.raises(ValueError, match="came where 1 was next"):
            report.take(PromptLogprobs(1, position, floats(*[0.0] * count), b"", b""))


def test_a_row_that_was_no_distribution_has_no_log_probability() -> None:
    report = PromptReport([1, 2], [b"a", b"b"], want_token_ids=False, num_candidates=1, bytes_of=bytes_of)
    told = report.first() + report.take(PromptLogprobs(1, 1, floats(np.nan), pack([NO_TOKEN]), floats(np.nan)))
    assert [(token.text, token.HasField("id"), token.HasField("logprob")) for token in told] == [
        (b"a", False, False),
        (b"b", False, False),
    ]
    assert not told[1].candidates
