"""From a submission to a sequence: what the engine checks before it lets anything wait.

Knows the limits and nothing else; it changes no state. A frontend has checked the same against the public contract
already; these checks hold whatever a frontend does.
"""

from array import array

from pagewire.scheduler_svc.engine.sequence import Sequence, SequenceKey
from pagewire.scheduler_svc.engine.steps import Rejection, SchedulerConfig
from pagewire.wire.columns import Int32Array, unpack
from pagewire.wire.requests import RejectKind, Submit


def check_ids(ids: Int32Array, vocab_size: int) -> None:
    """Raises ValueError for ids past the width of the logits, which would be read outside the embedding."""
    if len(ids) and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise ValueError(f"token ids {ids.min()} to {ids.max()} are outside 0 to {vocab_size - 1}")


def read_submission(key: SequenceKey, request: Submit, config: SchedulerConfig, now_s: float) -> Sequence:
    """The sequence that a submission asks for. Raises ValueError for a message that no correct frontend sends."""
    prompt, given = unpack(request.prompt), unpack(request.given)
    check_ids(prompt, config.vocab_size)
    check_ids(given, config.vocab_size)
    if request.max_tokens < 1 or not len(prompt):
        raise ValueError(f"{len(prompt)} prompt tokens and max_tokens {request.max_tokens}: both must be at least 1")
    return Sequence(
        key=key,
        request_id=request.request_id,
        sampling=request.sampling,
        prompt_len=len(prompt),
        max_len=len(prompt) + request.max_tokens,
        stop_token_ids=frozenset(request.stop_token_ids),
        ignore_eos=request.ignore_eos,
        priority=request.priority,
        salt=request.salt,
        arrived_s=now_s,
        queue_deadline_s=None if request.max_queue_time_s is None else now_s + request.max_queue_time_s,
        tokens=array("i", request.prompt + request.given),
    )


def refuse_misfit(sequence: Sequence, config: SchedulerConfig) -> Rejection | None:
    """A rejection with the numbers, if the sequence could not even run alone."""
    prompt_len, max_len = sequence.prompt_len, sequence.max_len
    if max_len > config.max_model_len:
        message = f"{prompt_len} prompt tokens and {max_len - prompt_len} of output exceed {config.max_model_len}"
        return Rejection(sequence.key, RejectKind.INVALID, "stopping.max_tokens", f"{message}, the longest sequence")
    num_blocks = -(-(max_len - 1) // config.block_size)  # the last token is sampled but never computed
    if num_blocks > config.num_blocks:
        message = f"{max_len} tokens need {num_blocks} blocks of {config.block_size}; all memory holds"
        return Rejection(sequence.key, RejectKind.INVALID, "stopping.max_tokens", f"{message} {config.num_blocks}")
    return None
