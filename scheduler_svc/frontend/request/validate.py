"""Validation: from `pagewire.v1.Generation` to a request that keeps every promise of the contract, or InvalidArgument.

It knows the contract's limits and the model's; it knows neither tokenizer nor engine. Every message names the field's
path in the request, its value and the limit. A field whose work is not built is refused when it asks for something; its
neutral value, which asks for nothing, is accepted.
"""

import hashlib
import re
from dataclasses import dataclass

from pagewire.scheduler_svc.frontend.errors import InvalidArgument
from pagewire.scheduler_svc.frontend.limits import (
    MAX_CACHE_SALT_BYTES,
    MAX_PRIORITY,
    MAX_QUEUE_TIME_S,
    MAX_REQUEST_ID_CHARACTERS,
    MAX_STOP_STRING_BYTES,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    MIN_PRIORITY,
    ModelLimits,
    check_model,
    check_token_ids,
    duration_s,
    quote,
)
from pagewire.scheduler_svc.frontend.request.chat_turn import ChatTurn, chat_turn
from pagewire.scheduler_svc.frontend.request.constraint import constraint_language
from pagewire.scheduler_svc.frontend.request.prompt import ChatPrompt, Prompt, validate_prompt
from pagewire.scheduler_svc.frontend.request.sampling import (
    bad_words,
    logit_controls,
    logprobs_request,
    prompt_logprobs,
    sampling_params,
)
from pagewire.scheduler_svc.frontend.text.languages import Content
from pagewire.v1 import generation_pb2 as pb
from pagewire.wire.logits import LogitControls, LogprobsRequest
from pagewire.wire.model import ModelSpec
from pagewire.wire.sampling import SamplingParams

_REQUEST_ID = re.compile(rf"[A-Za-z0-9._:-]{{1,{MAX_REQUEST_ID_CHARACTERS}}}")
_SALT_DOMAIN = b"pagewire prefix cache salt 1"


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidGeneration:
    """A generation whose every field is within its limits; only the prompt's length is not known yet."""

    prompt: Prompt
    prompt_path: str
    """Path of the prompt's field, for errors about its length."""
    sampling: SamplingParams
    """Of every output, but for the seed."""
    seed: int | None
    """Of the first output; none where the request leaves it to the server."""
    controls: LogitControls | None
    """Without bad words, whose ids a tokenizer must find, and without a grammar, which must be compiled."""
    language: Content | None
    """Of all of the output, or of a chat's content where its parts are wanted."""
    turn: ChatTurn | None
    """None where it is no chat, or its parts are not wanted."""
    bad_words: tuple[str, ...]
    max_tokens: int | None
    min_tokens: int
    stop_strings: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    ignore_eos: bool
    include_stop: bool
    want_text: bool
    want_token_ids: bool
    skip_special_tokens: bool
    want_logprobs: bool
    """Of the tokens themselves; candidates and named ids come where `logprobs` asks for them."""
    logprobs: LogprobsRequest | None
    prompt_logprobs: int | None
    n: int
    priority: int
    cache_salt: str | None
    max_queue_time_s: float | None
    request_id: str | None


def validate_generation(generation: pb.Generation, spec: ModelSpec, limits: ModelLimits) -> ValidGeneration:
    """Check every field. Raises InvalidArgument, and NotFound for another model's name."""
    check_model(generation.model, spec)
    path = "generation"
    prompt, prompt_path = validate_prompt(generation.prompt, f"{path}.prompt", spec, limits)
    sampling, stopping, output = generation.sampling, generation.stopping, generation.output
    has_text = spec.tokenizer_file is not None
    want_text = output.text if output.HasField("text") else has_text
    if want_text and not has_text:
        raise InvalidArgument(f"{path}.output.text", f"is true; model {spec.name} has no tokenizer")
    max_tokens = _max_tokens(stopping, limits)
    min_tokens = _min_tokens(stopping, max_tokens, limits)
    stop_token_ids = _stop_token_ids(stopping, limits)
    end_ids = stop_token_ids if stopping.ignore_eos else (*stop_token_ids, *spec.eos_token_ids)
    return ValidGeneration(
        prompt=prompt,
        prompt_path=prompt_path,
        sampling=sampling_params(sampling, spec, limits),
        seed=sampling.seed if sampling.HasField("seed") else None,
        controls=logit_controls(sampling, min_tokens, end_ids, limits),
        language=constraint_language(generation, spec, limits),
        turn=chat_turn(generation, prompt.choices if isinstance(prompt, ChatPrompt) else None, spec, limits),
        bad_words=bad_words(sampling, spec, limits),
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        stop_strings=_stop_strings(stopping, spec),
        stop_token_ids=stop_token_ids,
        ignore_eos=stopping.ignore_eos,
        include_stop=stopping.include_stop,
        want_text=want_text,
        want_token_ids=output.token_ids if output.HasField("token_ids") else True,
        skip_special_tokens=output.skip_special_tokens if output.HasField("skip_special_tokens") else True,
        want_logprobs=output.logprobs,
        logprobs=logprobs_request(output, limits),
        prompt_logprobs=prompt_logprobs(output, limits),
        n=_n(generation, limits),
        priority=_priority(generation),
        cache_salt=_cache_salt(generation),
        max_queue_time_s=_max_queue_time(generation),
        request_id=_request_id(generation),
    )


def resolve_max_tokens(requested: int | None, num_prompt_tokens: int, limits: ModelLimits) -> int:
    """The most tokens of one output. Raises InvalidArgument when prompt and output do not fit together."""
    room = limits.max_tokens - num_prompt_tokens
    if requested is None:
        return room
    if requested > room:
        raise InvalidArgument(
            "generation.stopping.max_tokens",
            f"is {requested}; with a prompt of {num_prompt_tokens} tokens at most {room} fit, as prompt and output "
            f"together may be {limits.max_tokens} tokens",
        )
    return requested


def chain_salt(tenant: str, cache_salt: str | None) -> bytes:
    """The root of a request's prefix-cache chain: 32 bytes from the authenticated tenant (empty: the anonymous one) and
    the request's salt, if it has one.

    Requests share cached blocks only when both are equal. They are written with their lengths before they are hashed,
    so that no tenant can choose a salt that makes its chain another's.
    """
    digest = hashlib.sha256(_SALT_DOMAIN)
    parts = [tenant] if cache_salt is None else [tenant, cache_salt]
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.digest()


def _max_tokens(stopping: pb.Stopping, limits: ModelLimits) -> int | None:
    if not stopping.HasField("max_tokens"):
        return None
    if not 1 <= stopping.max_tokens < limits.max_tokens:
        raise InvalidArgument(
            "generation.stopping.max_tokens",
            f"is {stopping.max_tokens}; its range is 1 to {limits.max_tokens - 1}, as prompt and output together "
            f"may be {limits.max_tokens} tokens",
        )
    return stopping.max_tokens


def _min_tokens(stopping: pb.Stopping, max_tokens: int | None, limits: ModelLimits) -> int:
    """An output that may not end before it is as long as it may become ends there: by its length."""
    most = limits.max_tokens - 1 if max_tokens is None else max_tokens
    if stopping.min_tokens > most:
        limit = "as much as fits" if max_tokens is None else "max_tokens"
        raise InvalidArgument(
            "generation.stopping.min_tokens", f"is {stopping.min_tokens}; its range is 0 to {most}, {limit}"
        )
    return stopping.min_tokens


def _stop_strings(stopping: pb.Stopping, spec: ModelSpec) -> tuple[str, ...]:
    path = "generation.stopping.stop_strings"
    if len(stopping.stop_strings) > MAX_STOP_STRINGS:
        raise InvalidArgument(path, f"has {len(stopping.stop_strings)} stop strings; at most {MAX_STOP_STRINGS} may be")
    stops = tuple(stopping.stop_strings)
    if stops and spec.tokenizer_file is None:
        raise InvalidArgument(path, f"is set; model {spec.name} has no tokenizer")
    for i, stop in enumerate(stops):
        size = len(stop.encode())
        if not 1 <= size <= MAX_STOP_STRING_BYTES:
            raise InvalidArgument(f"{path}[{i}]", f"has {size} bytes; its range is 1 to {MAX_STOP_STRING_BYTES}")
    return stops


def _stop_token_ids(stopping: pb.Stopping, limits: ModelLimits) -> tuple[int, ...]:
    path = "generation.stopping.stop_token_ids"
    if len(stopping.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        raise InvalidArgument(path, f"has {len(stopping.stop_token_ids)} ids; at most {MAX_STOP_TOKEN_IDS} may be")
    ids = tuple(stopping.stop_token_ids)
    check_token_ids(ids, path, limits.vocab_size)
    return ids


def _n(generation: pb.Generation, limits: ModelLimits) -> int:
    n = generation.n if generation.HasField("n") else 1
    if not 1 <= n <= limits.max_n:
        raise InvalidArgument("generation.n", f"is {n}; its range is 1 to {limits.max_n}")
    return n


def _priority(generation: pb.Generation) -> int:
    if not MIN_PRIORITY <= generation.priority <= MAX_PRIORITY:
        raise InvalidArgument(
            "generation.priority", f"is {generation.priority}; its range is {MIN_PRIORITY} to {MAX_PRIORITY}"
        )
    return generation.priority


def _cache_salt(generation: pb.Generation) -> str | None:
    if not generation.HasField("cache_salt"):
        return None
    size = len(generation.cache_salt.encode())
    if size > MAX_CACHE_SALT_BYTES:
        raise InvalidArgument("generation.cache_salt", f"has {size} bytes; at most {MAX_CACHE_SALT_BYTES} may be")
    return generation.cache_salt


def _max_queue_time(generation: pb.Generation) -> float | None:
    if not generation.HasField("max_queue_time"):
        return None
    return duration_s(
        generation.max_queue_time,
        "generation.max_queue_time",
        lambda s: 0 < s <= MAX_QUEUE_TIME_S,
        "greater than 0, at most one day",
    )


def _request_id(generation: pb.Generation) -> str | None:
    if not generation.HasField("request_id"):
        return None
    if not _REQUEST_ID.fullmatch(generation.request_id):
        raise InvalidArgument(
            "generation.request_id",
            f"is {quote(generation.request_id)}; it must be 1 to {MAX_REQUEST_ID_CHARACTERS} characters of "
            "[A-Za-z0-9._:-]",
        )
    return generation.request_id
