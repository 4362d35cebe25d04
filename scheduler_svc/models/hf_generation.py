"""generation_config.json of a Hugging Face model → end-of-sequence ids and a request's defaults of sampling.

Keys are those that transformers' `GenerationConfig` documents. Those that are sampling parameters become defaults;
others that would change the output are named in a warning, because published models have them and run well without; the
rest says how transformers computes, and is passed over.
"""

import logging
from collections.abc import Mapping
from typing import Any

import msgspec

from pagewire.scheduler_svc.models.files import decode_json, decode_object
from pagewire.scheduler_svc.startup_errors import ModelError, shown
from pagewire.wire.sampling import PARAMETERS, SamplingParams

_log = logging.getLogger(__name__)

NARROWEST_TOP_P = 1e-10
"""What a file's top_p of 0 becomes: one token, as transformers' TopPLogitsWarper keeps one. A request's top_p is above
0; and no vocabulary is so large that its likeliest token has less than this."""

_OFF = (0, False)
_UNAPPLIED: dict[str, tuple[object, ...]] = {
    "top_h": (1,),
    "typical_p": (1,),
    "epsilon_cutoff": _OFF,
    "eta_cutoff": _OFF,
    "no_repeat_ngram_size": _OFF,
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ({}, []),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "forced_decoder_ids": ([],),
    "force_words_ids": ([],),
    "constraints": ([],),
    "exponential_decay_length_penalty": (),
    "token_healing": _OFF,
    "guidance_scale": (1,),
    "watermarking_config": (),
    "stop_strings": ([],),
    "min_length": _OFF,
    "min_new_tokens": _OFF,
    "max_length": (20,),  # transformers' default, which older versions wrote into every file
    "max_new_tokens": (),
    "max_time": (),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "diversity_penalty": _OFF,
    "penalty_alpha": _OFF,
    "dola_layers": (),
}
"""Keys that change the output and are not applied, with the values besides null at which they change nothing."""

_HARMLESS = frozenset(
    {
        # Where the file is from.
        "_from_model_config", "_commit_hash", "transformers_version",
        # Tokens: the tokenizer's files name them.
        "pad_token_id", "bos_token_id", "decoder_start_token_id", "sep_token_id",
        # Without effect where there are no beams and no encoder.
        "length_penalty", "early_stopping", "encoder_repetition_penalty", "encoder_no_repeat_ngram_size",
        # Rows with such logits are ended with an error; and probabilities always add up to one.
        "remove_invalid_values", "renormalize_logits",
        # What `generate` returns, and how it computes the same.
        "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
        "use_cache", "cache_implementation", "cache_config", "max_cache_len", "return_legacy_cache", "low_memory",
        "compile_config", "disable_compile", "continuous_batching_config", "prefill_chunk_size", "use_mtp",
        "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
        "prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind",
        "target_lookbehind", "assistant_ensemble_weight", "speculation_type",
    }
)  # fmt: skip


class _GenerationConfig(msgspec.Struct):
    """What is read beside sampling parameters."""

    eos_token_id: int | list[int] | None = None
    do_sample: bool | None = None


_DEFAULTED = {name: limits for name, limits in PARAMETERS.items() if name != "seed"}
_Sampling = msgspec.defstruct(
    "_Sampling",
    [(name, (int if limits.dtype == "<i4" else float) | None, None) for name, limits in _DEFAULTED.items()],
)
SAMPLING_KEYS = ("do_sample", *_DEFAULTED)
_READ = frozenset(_GenerationConfig.__struct_fields__).union(SAMPLING_KEYS)
GENERATION_KEYS = _READ | _HARMLESS | frozenset(_UNAPPLIED)
"""Every key that is known."""


class HfGeneration(msgspec.Struct, frozen=True):
    """What generation_config.json says; no ids where it names none."""

    eos_token_ids: tuple[int, ...]
    sampling: SamplingParams


def read_generation_config(content: bytes, vocab_size: int, origin: str = "generation_config.json") -> HfGeneration:
    """Read the file; or config.json, whose keys of the same names count where the other file is missing.

    `do_sample: false` means greedy; sampling that it leaves out is neutral. Raises ModelError.
    """
    config = decode_json(content, _GenerationConfig, origin)
    found = msgspec.structs.asdict(decode_json(content, _Sampling, origin))
    if config.do_sample is False:
        found["temperature"] = 0.0
    sampling = sampling_defaults(found, vocab_size, origin)
    _warn_of_the_rest(decode_object(content, origin), origin)
    return HfGeneration(eos_ids(config.eos_token_id, vocab_size, origin), sampling)


def sampling_defaults(found: Mapping[str, float | None], vocab_size: int, origin: str) -> SamplingParams:
    """Defaults from a file's values by the parameters' names, none where it has none. Raises ModelError for what no
    request may ask for."""
    defaults: dict[str, Any] = {}
    for name, limits in _DEFAULTED.items():
        value = found.get(name)
        if value is None:
            continue
        kept = max(value, NARROWEST_TOP_P) if value == 0 < limits.least else value
        if not limits.allow(kept):
            in_words = limits.in_words if limits.least == 0 else f"0 to {limits.most:g}"
            raise ModelError(f"{origin}: {name} = {shown(value)} must be {in_words}")
        defaults[name] = kept
    if defaults.get("top_k", 0) >= vocab_size:  # of more tokens than there are, all are kept
        del defaults["top_k"]
    return SamplingParams(**defaults)


def eos_ids(value: int | list[int] | None, vocab_size: int, origin: str) -> tuple[int, ...]:
    """Ids that a model can emit; some files name ids beyond the embedding, which never come."""
    ids = [] if value is None else [value] if isinstance(value, int) else value
    kept = tuple(dict.fromkeys(token for token in ids if 0 <= token < vocab_size))
    if len(kept) < len(set(ids)):
        _log.warning("%s: eos_token_id = %s names ids that are not 0 to %d", origin, shown(value), vocab_size - 1)
    return kept


def _warn_of_the_rest(raw: Mapping[str, Any], origin: str) -> None:
    unknown = []
    for key, value in raw.items():
        if value is None or key in _READ or key in _HARMLESS:
            continue
        if key not in _UNAPPLIED:
            unknown.append(key)
        elif value not in _UNAPPLIED[key]:
            _log.warning("%s sets %s = %s, which is not applied", origin, key, shown(value))
    if unknown and origin != "config.json":  # whose other keys have a reader of their own
        _log.warning("%s: keys that are not known, and not applied: %s", origin, shown(sorted(unknown)))
