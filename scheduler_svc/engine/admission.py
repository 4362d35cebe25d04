"""Admission: from a submission to a sequence, and what is checked before anything may wait.

Knows the limits and nothing else; it changes no state. A frontend has checked the same against the public contract
already; these checks hold whatever a frontend does. What comes out of here can be planned, sent to a worker and sampled
with; every field of a Submit that could spoil that is checked, or said in its type.
"""

import math
from array import array

import numpy as np

from pagewire.scheduler_svc.engine.config import SchedulerConfig
from pagewire.scheduler_svc.engine.sequence import Sequence, SequenceKey
from pagewire.wire.columns import ID_BYTES, Int32Array, are_below, unpack
from pagewire.wire.logits_check import logits_problem
from pagewire.wire.requests import Rejected, RejectKind, Submit

_MAX_REQUEST_ID_CHARACTERS = 1024
_MAX_SALT_BYTES = 1024
_MAX_TENANT_CHARACTERS = 1024
_MAX_PRIORITY = 2**31 - 1
MAX_QUEUE_TIME_S = 1e9


class UnanswerableError(ValueError):
    """A submission under the handle of an open sequence: an answer would be taken for that one's."""


def refuse_length(request: Submit, max_model_len: int) -> Rejected | None:
    """A rejection of what is too long before anything else is known of it, so that it need not be kept."""
    num_tokens = (len(request.prompt) + len(request.generated)) // ID_BYTES
    if num_tokens <= max_model_len:
        return None
    return _too_long(request.handle, f"{num_tokens} known tokens exceed {max_model_len}, the longest sequence")


def check_ids(ids: Int32Array, vocab_size: int) -> None:
    """Raises ValueError for ids past the width of the logits, which would be read outside the embedding."""
    if not are_below(ids, vocab_size):
        raise ValueError(f"token ids {ids.min()} to {ids.max()} are outside 0 to {vocab_size - 1}")


def read_submission(key: SequenceKey, request: Submit, config: SchedulerConfig, now_s: float) -> Sequence:
    """The sequence that a submission asks for. Raises ValueError for a message that no correct frontend sends."""
    prompt, generated = unpack(request.prompt), unpack(request.generated)
    check_ids(prompt, config.vocab_size)
    check_ids(generated, config.vocab_size)
    if request.max_tokens < 1 or not len(prompt):
        raise ValueError(f"{len(prompt)} prompt tokens and max_tokens {request.max_tokens}: both must be at least 1")
    if (problem := request.sampling.problem() or _problem(request, config)) is not None:
        raise ValueError(problem)
    sequence = Sequence(
        key=key,
        request_id=request.request_id,
        tenant=request.tenant,
        sampling=request.sampling,
        prompt_len=len(prompt),
        max_len=len(prompt) + request.max_tokens,
        stop_token_ids=frozenset(request.stop_token_ids),
        ignore_eos=request.ignore_eos,
        priority=request.priority,
        salt=request.salt,
        cache_salt=request.cache_salt,
        arrived_s=now_s,
        queue_deadline_s=None if request.max_queue_time_s is None else now_s + request.max_queue_time_s,
        controls=request.controls,
        logprobs=request.logprobs,
        prompt_logprobs=request.prompt_logprobs,
        tokens=array("i", request.prompt + request.generated),
    )
    _check_generated(generated, sequence, config)
    return sequence


def _problem(request: Submit, config: SchedulerConfig) -> str | None:
    """What is out of range beside tokens and sampling, if anything is."""
    for token in request.stop_token_ids:
        if not 0 <= token < config.vocab_size:
            return f"stop_token_ids has {token}; ids are 0 to {config.vocab_size - 1}"
    if not -_MAX_PRIORITY <= request.priority <= _MAX_PRIORITY:
        return f"priority is {request.priority}; the range is -{_MAX_PRIORITY} to {_MAX_PRIORITY}"
    if len(request.request_id) > _MAX_REQUEST_ID_CHARACTERS:
        return f"request_id has {len(request.request_id)} characters; at most {_MAX_REQUEST_ID_CHARACTERS} may be"
    if len(request.salt) > _MAX_SALT_BYTES:
        return f"salt has {len(request.salt)} bytes; at most {_MAX_SALT_BYTES} may be"
    if request.cache_salt is not None and len(request.cache_salt) > _MAX_SALT_BYTES:
        return f"cache_salt has {len(request.cache_salt)} characters; at most {_MAX_SALT_BYTES} may be"
    if len(request.tenant) > _MAX_TENANT_CHARACTERS:
        return f"tenant has {len(request.tenant)} characters; at most {_MAX_TENANT_CHARACTERS} may be"
    asked = (request.controls, request.logprobs, request.prompt_logprobs)
    if asked != (None, None, None) and (problem := logits_problem(*asked, config.vocab_size)) is not None:
        return problem
    wait_s = request.max_queue_time_s
    if wait_s is not None and not (math.isfinite(wait_s) and 0 <= wait_s <= MAX_QUEUE_TIME_S):
        return f"max_queue_time_s is {wait_s}; the range is 0 to {MAX_QUEUE_TIME_S:g}"
    return None


def _check_generated(generated: Int32Array, sequence: Sequence, config: SchedulerConfig) -> None:
    """What an earlier engine delivered is an output that went on: only its last token may end it. Raises ValueError."""
    max_tokens = sequence.max_len - sequence.prompt_len
    if len(generated) > max_tokens:
        raise ValueError(f"{len(generated)} tokens are generated; max_tokens is {max_tokens}")
    ends = sequence.stop_token_ids if sequence.ignore_eos else sequence.stop_token_ids.union(config.eos_token_ids)
    ended = np.flatnonzero(np.isin(generated[:-1], list(ends)))
    if len(ended):
        raise ValueError(f"token {ended[0]} of {len(generated)} generated ends the output")


def refuse_oversized(sequence: Sequence, config: SchedulerConfig) -> Rejected | None:
    """A rejection with the numbers, if the sequence could not even run alone."""
    prompt_len, max_len = sequence.prompt_len, sequence.max_len
    if max_len > config.max_model_len:
        message = f"{prompt_len} prompt tokens and {max_len - prompt_len} of output exceed {config.max_model_len}"
        return _too_long(sequence.key.handle, f"{message}, the longest sequence")
    num_blocks = -(-(max_len - 1) // config.block_size)  # the last token is sampled but never computed
    if num_blocks > config.num_blocks:
        message = f"{max_len} tokens need {num_blocks} blocks of {config.block_size}; all memory holds"
        return _too_long(sequence.key.handle, f"{message} {config.num_blocks}")
    return None


def _too_long(handle: int, message: str) -> Rejected:
    return Rejected(handle, RejectKind.INVALID, "stopping.max_tokens", message, None)
