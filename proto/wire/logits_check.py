"""Whether what a sequence asks of its logits can be done: checked by the engine before it takes the sequence over, and
by a worker before it admits it. Each holds whatever the others do."""

import numpy as np

from pagewire.wire.codec import WireError
from pagewire.wire.columns import ID_BYTES, Int32Array, unpack, unpack_floats
from pagewire.wire.logits import (
    MAX_BAD_WORD_IDS,
    MAX_CANDIDATES,
    MAX_END_IDS,
    MAX_LOGIT_BIAS,
    MAX_NAMED_IDS,
    LogitControls,
    LogprobsRequest,
)

_MAX_BIAS = 100.0


def logits_problem(
    controls: LogitControls | None, logprobs: LogprobsRequest | None, prompt_logprobs: int | None, vocab_size: int
) -> str | None:
    """What is wrong, naming field, value and limit; none where everything can be done."""
    try:
        if controls is not None:
            _check_controls(controls, vocab_size)
        if logprobs is not None:
            _check_ids("logprobs.named_ids", logprobs.named_ids, MAX_NAMED_IDS, vocab_size)
        if prompt_logprobs is not None and not 0 <= prompt_logprobs <= MAX_CANDIDATES:
            raise WireError(f"prompt_logprobs is {prompt_logprobs}; its range is 0 to {MAX_CANDIDATES}")
    except WireError as error:
        return str(error)
    return None


def _check_controls(controls: LogitControls, vocab_size: int) -> None:
    bias_ids = _check_set("controls.bias_ids", controls.bias_ids, MAX_LOGIT_BIAS, vocab_size)
    if len(controls.bias_values) != len(bias_ids) * ID_BYTES:
        raise WireError(f"controls.bias_values are {len(controls.bias_values)} bytes for {len(bias_ids)} ids")
    bias = unpack_floats(controls.bias_values)
    if not (np.abs(bias) <= _MAX_BIAS).all():  # NaN is not either
        raise WireError(f"controls.bias_values are {bias.min()} to {bias.max()}; the range is -100 to 100")
    _check_set("controls.allowed_ids", controls.allowed_ids, vocab_size, vocab_size)
    _check_set("controls.banned_ids", controls.banned_ids, vocab_size, vocab_size)
    _check_set("controls.end_ids", controls.end_ids, MAX_END_IDS, vocab_size)
    for index, word in enumerate(controls.bad_words):
        field = f"controls.bad_words[{index}]"
        if not len(_check_ids(field, word, MAX_BAD_WORD_IDS, vocab_size)):
            raise WireError(f"{field} has no id")
    num_ids = sum(map(len, controls.bad_words)) // ID_BYTES
    if num_ids > MAX_BAD_WORD_IDS:
        raise WireError(f"controls.bad_words have {num_ids} ids in all; at most {MAX_BAD_WORD_IDS} may be")


def _check_ids(field: str, column: bytes, most: int, vocab_size: int) -> Int32Array:
    if len(column) > most * ID_BYTES:
        raise WireError(f"{field} has {len(column) // ID_BYTES} ids; at most {most} may be")
    ids = unpack(column)
    if len(ids) and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise WireError(f"{field} has ids {ids.min()} to {ids.max()}; ids are 0 to {vocab_size - 1}")
    return ids


def _check_set(field: str, column: bytes, most: int, vocab_size: int) -> Int32Array:
    ids = _check_ids(field, column, most, vocab_size)
    if not (ids[1:] > ids[:-1]).all():
        raise WireError(f"{field} has ids that do not ascend")
    return ids
