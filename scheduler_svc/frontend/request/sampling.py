"""Sampling: from `pagewire.v1.Sampling`, and what bears on logits in `Stopping` and `Output`, to the wire's records.

Knows the limits of contract and model, the logits' width among them; neither tokenizer nor engine. What asks for
nothing becomes nothing: a sequence without controls costs a worker no look at its logits. Lists are counted before
anything is made of them; ids that stand twice count once; -0 is 0; NaN and infinities are within no range.
"""

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from pagewire.scheduler_svc.frontend.errors import InvalidArgument
from pagewire.scheduler_svc.frontend.limits import (
    MAX_BAD_WORDS,
    MAX_STOP_STRING_BYTES,
    ModelLimits,
    check_token_ids,
    within,
)
from pagewire.v1 import generation_pb2 as pb
from pagewire.wire.columns import pack
from pagewire.wire.logits import MAX_CANDIDATES, MAX_LOGIT_BIAS, MAX_NAMED_IDS, LogitControls, LogprobsRequest
from pagewire.wire.model import ModelSpec
from pagewire.wire.sampling import PARAMETERS, SamplingParams

_SAMPLING = "generation.sampling"
_OUTPUT = "generation.output"
_MAX_BIAS = 100.0
_NO_CONTROLS = LogitControls()


def sampling_params(sampling: pb.Sampling, spec: ModelSpec, limits: ModelLimits) -> SamplingParams:
    """What is set over the model's defaults, of which a device without logits has no penalties; the seed is left out.
    Raises InvalidArgument."""
    asked = {
        name: within(f"{_SAMPLING}.{name}", getattr(sampling, name), each.allow, each.in_words) + 0
        for name, each in PARAMETERS.items()
        if name != "seed" and sampling.HasField(name)
    }
    if limits.no_logits is not None:
        for name, value in asked.items():
            if PARAMETERS[name].needs_history and value != getattr(spec.sampling, name):
                raise InvalidArgument(f"{_SAMPLING}.{name}", limits.no_logits)
    params: SamplingParams = msgspec.structs.replace(spec.sampling, **asked)
    # Keeping at least as many as there are is keeping all; so no other process meets a k over the vocabulary.
    return params if params.top_k < limits.vocab_size else msgspec.structs.replace(params, top_k=0)


def logit_controls(
    sampling: pb.Sampling, min_tokens: int, end_ids: Iterable[int], limits: ModelLimits
) -> LogitControls | None:
    """What is done to logits, but for bad words; none where nothing is. `end_ids` are those that would end the output.
    Raises InvalidArgument."""
    bias = _logit_bias(sampling, limits)
    allowed = _id_set(sampling.allowed_token_ids, "allowed_token_ids", limits)
    banned = _id_set(sampling.banned_token_ids, "banned_token_ids", limits)
    ends = np.unique(np.array(list(end_ids), np.int32)) if min_tokens else np.empty(0, np.int32)
    if len(allowed):
        _refuse_nothing_left(allowed, banned, ends, min_tokens)
    controls = LogitControls(
        bias_ids=pack(list(bias)),
        bias_values=np.array(list(bias.values()), "<f4").tobytes(),
        allowed_ids=pack(allowed),
        banned_ids=pack(banned),
        min_tokens=min_tokens if len(ends) else 0,
        end_ids=pack(ends),
    )
    if controls == _NO_CONTROLS:
        return None
    if limits.no_logits is not None:
        asked = {"logit_bias": len(bias), "allowed_token_ids": len(allowed), "banned_token_ids": len(banned)}
        name = next((name for name, count in asked.items() if count), None)
        raise InvalidArgument(
            "generation.stopping.min_tokens" if name is None else f"{_SAMPLING}.{name}", limits.no_logits
        )
    return controls


def bad_words(sampling: pb.Sampling, spec: ModelSpec, limits: ModelLimits) -> tuple[str, ...]:
    """The texts. Raises InvalidArgument."""
    path, words = f"{_SAMPLING}.bad_words", tuple(sampling.bad_words)
    if len(words) > MAX_BAD_WORDS:
        raise InvalidArgument(path, f"has {len(words)} texts; at most {MAX_BAD_WORDS} may be")
    if words and limits.no_logits is not None:
        raise InvalidArgument(path, limits.no_logits)
    if words and spec.tokenizer_file is None:
        raise InvalidArgument(path, f"is set; model {spec.name} has no tokenizer")
    for index, word in enumerate(words):
        size = len(word.encode())
        if not 1 <= size <= MAX_STOP_STRING_BYTES:
            raise InvalidArgument(f"{path}[{index}]", f"has {size} bytes; its range is 1 to {MAX_STOP_STRING_BYTES}")
    return words


def logprobs_request(output: pb.Output, limits: ModelLimits) -> LogprobsRequest | None:
    """Which log-probabilities come with the output's tokens; none where none are asked for. Raises InvalidArgument."""
    count = _num_candidates(output, "num_candidates")
    named = list(output.logprob_token_ids)
    path = f"{_OUTPUT}.logprob_token_ids"
    if len(named) > MAX_NAMED_IDS:
        raise InvalidArgument(path, f"has {len(named)} ids; at most {MAX_NAMED_IDS} may be")
    check_token_ids(named, path, limits.vocab_size)
    if not (output.logprobs or count or named):
        return None
    if limits.no_logits is not None:
        asked = "logprobs" if output.logprobs else "num_candidates" if count else "logprob_token_ids"
        raise InvalidArgument(f"{_OUTPUT}.{asked}", limits.no_logits)
    return LogprobsRequest(num_candidates=count, named_ids=pack(named), is_processed=output.processed_logprobs)


def prompt_logprobs(output: pb.Output, limits: ModelLimits) -> int | None:
    """How many candidates come with the prompt's log-probabilities; none where these are not asked for. Raises
    InvalidArgument."""
    count = _num_candidates(output, "num_prompt_candidates")
    if not (output.prompt_logprobs or count):
        return None
    if limits.no_logits is not None:
        asked = "prompt_logprobs" if output.prompt_logprobs else "num_prompt_candidates"
        raise InvalidArgument(f"{_OUTPUT}.{asked}", limits.no_logits)
    return count


def _num_candidates(output: pb.Output, name: str) -> int:
    count: int = getattr(output, name)
    if count > MAX_CANDIDATES:
        raise InvalidArgument(f"{_OUTPUT}.{name}", f"is {count}; its range is 0 to {MAX_CANDIDATES}")
    return count


def _logit_bias(sampling: pb.Sampling, limits: ModelLimits) -> dict[int, float]:
    """By ascending ids, without those of 0."""
    path, bias = f"{_SAMPLING}.logit_bias", sampling.logit_bias
    if len(bias) > MAX_LOGIT_BIAS:
        raise InvalidArgument(path, f"has {len(bias)} entries; at most {MAX_LOGIT_BIAS} may be")
    for token in sorted(bias):
        if token >= limits.vocab_size:
            raise InvalidArgument(
                f"{path}[{token}]", f"is of id {token}; token ids of this model are less than {limits.vocab_size}"
            )
        within(f"{path}[{token}]", bias[token], lambda value: abs(value) <= _MAX_BIAS, "-100 to 100")
    return {token: bias[token] for token in sorted(bias) if bias[token] != 0}


def _id_set(ids: Sequence[int], name: str, limits: ModelLimits) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """Ascending, each once."""
    path = f"{_SAMPLING}.{name}"
    if len(ids) > limits.vocab_size:
        raise InvalidArgument(path, f"has {len(ids)} ids; at most {limits.vocab_size} may be")
    check_token_ids(ids, path, limits.vocab_size)
    return np.unique(np.array(ids, np.int32)) if ids else np.empty(0, np.int32)


def _refuse_nothing_left(
    allowed: np.ndarray[tuple[int], np.dtype[np.int32]],
    banned: np.ndarray[tuple[int], np.dtype[np.int32]],
    ends: np.ndarray[tuple[int], np.dtype[np.int32]],
    min_tokens: int,
) -> None:
    path = f"{_SAMPLING}.allowed_token_ids"
    left = np.setdiff1d(allowed, banned)
    if not len(left):
        raise InvalidArgument(path, f"has {len(allowed)} ids, all of which banned_token_ids bans")
    if not len(np.setdiff1d(left, ends)):
        raise InvalidArgument(path, f"leaves {len(left)} ids, all of which end the output; min_tokens is {min_tokens}")
