"""What a sequence asks of its logits beside its sampling parameters: what is added to them or taken out before a token
is drawn, and which log-probabilities come back.

Lists of a length of their own stand here, and whatever only some sequences ask for; numbers that every sequence has are
`pagewire.wire.sampling`'s. Neither side reads one where the other has sent none, so they cost nobody else anything.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from pagewire.wire.codec import Count

MAX_LOGIT_BIAS = 1024
MAX_BAD_WORDS = 256
"""Lists of ids; a text is two of them."""
MAX_BAD_WORD_IDS = 4096
"""Of all of a sequence's lists together."""
MAX_END_IDS = 8192
MAX_GRAMMAR_CHARACTERS = 1 << 20
MAX_CANDIDATES = 20
MAX_NAMED_IDS = 128
MAX_SCORED_ROWS = 64
"""Most prompt positions whose log-probabilities one step gives: each is a row of logits."""


class LogitControls(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is done to a sequence's logits. Columns of ids are int32, ascending, each id once and within the logits.

    In this order: bias, penalties (which the sampling parameters say), then minus infinity for what may not be.
    """

    bias_ids: bytes = b""
    bias_values: bytes = b""
    """float32 column, as long as `bias_ids`: added."""
    allowed_ids: bytes = b""
    """All others may not be; empty: all may."""
    banned_ids: bytes = b""
    bad_words: Annotated[list[bytes], Meta(max_length=MAX_BAD_WORDS)] = []
    """int32 columns, each of at least one id, as they stand in a text: the last may not be where the sequence, prompt
    and all, ends with the others."""
    min_tokens: Count = 0
    """While the output has fewer tokens, none of `end_ids` may be."""
    end_ids: bytes = b""
    """What would end the output."""
    grammar: Annotated[str, Meta(max_length=MAX_GRAMMAR_CHARACTERS)] = ""
    """In llguidance's form: what the output must be. What it does not let come next may not be. Empty: anything."""


class LogprobsRequest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Which log-probabilities come back with every token of the output."""

    num_candidates: Annotated[int, Meta(ge=0, le=MAX_CANDIDATES)] = 0
    """The likeliest ids, likeliest first."""
    named_ids: bytes = b""
    """int32 column, in the request's order, an id as often as it stands there."""
    is_processed: bool = False
    """Of the logits after `LogitControls` and penalties, instead of the model's."""
