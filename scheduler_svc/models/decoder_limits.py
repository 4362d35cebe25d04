"""Decoder limits: what can be a decoder at all, whichever file says so; a limit of its own for every number.

A number of a file becomes loops, tables and buffers long before a tensor is looked at. The limits are far above every
published model.
"""

import math
from collections.abc import Mapping

from pagewire.scheduler_svc.startup_errors import ModelError, shown
from pagewire.wire.model import DecoderConfig, RopeScaling

_LIMITS = {
    "hidden_size": 2**17,
    "intermediate_size": 2**20,
    "num_layers": 1024,
    "num_heads": 2**12,
    "num_kv_heads": 2**12,
    "head_dim": 2**12,
    "vocab_size": 2**24,
    "max_position_embeddings": 2**24,
}
_MAX_THETA = 1e15
_MAX_FACTOR = 1e6
_MAX_CONTEXT = 2**24


def check_decoder(decoder: DecoderConfig, origin: str, names: Mapping[str, str]) -> None:
    """Hold a shape to its limits. `names` are the file's for fields that it calls otherwise. Raises ModelError naming
    origin, key and value."""

    def said(name: str) -> str:
        return f"{origin}: {names.get(name, name)} = {shown(getattr(decoder, name))}"

    for name, limit in _LIMITS.items():
        if not 1 <= getattr(decoder, name) <= limit:
            raise ModelError(f"{said(name)} must be 1 to {limit}")
    if decoder.num_heads % decoder.num_kv_heads:
        kv_heads = names.get("num_kv_heads", "num_kv_heads")
        raise ModelError(f"{said('num_heads')} cannot share {kv_heads} = {decoder.num_kv_heads} evenly")
    if decoder.head_dim % 2:
        raise ModelError(f"{said('head_dim')} is odd; rotary embedding needs pairs")
    if not 0 < decoder.rms_norm_eps < 1:
        raise ModelError(f"{said('rms_norm_eps')} must be above 0 and below 1")
    if not 1 < decoder.rope_theta <= _MAX_THETA:
        raise ModelError(f"{said('rope_theta')} must be above 1, at most {_MAX_THETA:g}")
    if decoder.sliding_window is not None and not 1 <= decoder.sliding_window <= _MAX_CONTEXT:
        raise ModelError(f"{said('sliding_window')} must be 1 to {_MAX_CONTEXT}")
    if decoder.rope_scaling is not None:
        _check_scaling(decoder.rope_scaling, origin)


def _check_scaling(scaling: RopeScaling, origin: str) -> None:
    for name in ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor"):
        value = getattr(scaling, name)
        if value is not None and not (math.isfinite(value) and 0 < value <= _MAX_FACTOR):
            raise ModelError(
                f"{origin}: {name} = {value} of rotary embedding's scaling must be above 0, at most {_MAX_FACTOR:g}"
            )
    original = scaling.original_max_position_embeddings
    if original is not None and not 1 <= original <= _MAX_CONTEXT:
        raise ModelError(f"{origin}: original_max_position_embeddings = {shown(original)} must be 1 to {_MAX_CONTEXT}")
    if original is not None and original * scaling.factor > _MAX_CONTEXT:
        raise ModelError(
            f"{origin}: factor = {scaling.factor} makes {original * scaling.factor:g} positions of "
            f"{original}; at most {_MAX_CONTEXT} are served"
        )
