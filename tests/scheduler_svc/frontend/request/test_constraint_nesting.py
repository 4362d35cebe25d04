"""How deep a constraint's text may nest: as counted one character after the other."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagewire.scheduler_svc.frontend.errors import InvalidArgument
from pagewire.scheduler_svc.frontend.limits import MAX_CONSTRAINT_NESTING
from pagewire.scheduler_svc.frontend.request.constraint import check_nesting

STEPS = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}
PIECES = st.tuples(st.sampled_from(["(", "[", "{", ")", "]", "}", "a", "é", "字"]), st.integers(1, 9000))


@given(st.lists(PIECES, max_size=8))
def test_as_one_character_after_the_other(pieces: list[tuple[str, int]]) -> None:
    text = "".join(character * number for character, number in pieces)
    depth = max(itertools.accumulate((STEPS.get(character, 0) for character in text), initial=0))
    if depth <= MAX_CONSTRAINT_NESTING:
        check_nesting(text, "here")
    else:
        with pytest.raises(InvalidArgument, match="nests more than 500 brackets deep"):
            check_nesting(text, "here")


@pytest.mark.parametrize("before", [0, 8191, 8192, 20_000])
def test_to_the_bracket(before: int) -> None:
    check_nesting("a" * before + "(" * MAX_CONSTRAINT_NESTING, "here")
    with pytest.raises(InvalidArgument):
        check_nesting("a" * before + "(" * (MAX_CONSTRAINT_NESTING + 1), "here")
