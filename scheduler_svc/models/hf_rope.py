"""Rotary embedding's parameters, as Hugging Face's files spell them.

Precedence as in transformers 5.23 (`RotaryEmbeddingConfigMixin.convert_rope_params_to_dict`): `rope_scaling`, then
`rope_parameters`; a `rope_theta` inside them wins over the one beside them.
"""

import logging
from typing import Any

from pagewire.scheduler_svc.startup_errors import ModelError, shown
from pagewire.wire.model import RopeScaling

_log = logging.getLogger(__name__)

_DEFAULT_THETA = 10_000.0

_MAX_NUMBER = 1e30
"""What is a float at all; `decoder_limits` is stricter."""

_KEYS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "default": (frozenset(), frozenset()),
    "linear": (frozenset({"factor"}), frozenset()),
    "llama3": (frozenset({"factor", "low_freq_factor", "high_freq_factor"}), frozenset()),
    "yarn": (frozenset({"factor"}), frozenset({"attention_factor", "beta_fast", "beta_slow"})),
}
"""For each kind, the keys it must have and those it may have."""

_EVERYWHERE = frozenset(
    {
        "rope_type",
        "type",
        "rope_theta",
        "partial_rotary_factor",
        "original_max_position_embeddings",
        "truncate",
        "finetuned",
    }
)


def read_rope(
    scaling: dict[str, Any],
    rope_theta: float | None,
    partial_rotary_factor: float | None,
    max_position_embeddings: int,
    original_max_position_embeddings: int | None,
) -> tuple[float, RopeScaling | None]:
    """Theta and the scaling, none for plain rotary embedding. Raises ModelError for what the decoder does not do."""
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if scaling.get("type", kind) != kind:
        _log.warning(
            "config.json: rope_type = %s and type = %s differ; the former counts", shown(kind), shown(scaling["type"])
        )
    if not isinstance(kind, str) or kind not in _KEYS:
        raise ModelError(f"config.json: rope_type = {shown(kind)} is not served; {', '.join(_KEYS)} are")
    partial = scaling.get("partial_rotary_factor", partial_rotary_factor)
    if partial is not None and partial != 1:
        raise ModelError(f"config.json: partial_rotary_factor = {shown(partial)} is not served; 1.0 is")
    if scaling.get("truncate", True) is not True:
        raise ModelError(f"config.json: truncate = {shown(scaling['truncate'])} of rope_type {kind!r} is not served")
    theta = _DEFAULT_THETA if rope_theta is None else rope_theta
    if scaling.get("rope_theta") is not None:
        inner = _number(scaling, "rope_theta")
        if rope_theta is not None and inner != rope_theta:
            _log.warning(
                "config.json: rope_theta = %r and, within the scaling, %r; the latter counts", rope_theta, inner
            )
        theta = inner
    required, allowed = _KEYS[kind]
    for key, value in scaling.items():
        if key not in required | allowed | _EVERYWHERE and value is not None:
            raise ModelError(f"config.json: {key} = {shown(value)} of rope_type {kind!r} is not served")
    for key in required:
        if scaling.get(key) is None:
            raise ModelError(f"config.json: rope_type {kind!r} lacks {key}")
    if kind == "default":
        return theta, None
    values = {key: _number(scaling, key) for key in required | allowed if scaling.get(key) is not None}
    original = None
    if kind in ("llama3", "yarn"):
        original = _original(scaling, original_max_position_embeddings, max_position_embeddings)
    return theta, RopeScaling(kind=kind, original_max_position_embeddings=original, **values)  # type: ignore[arg-type]


def _original(scaling: dict[str, Any], beside: int | None, max_position_embeddings: int) -> int:
    """The length before scaling: the one beside the scaling, the one within it, else that of the model."""
    within = scaling.get("original_max_position_embeddings")
    if beside is not None:
        if within is not None and within != beside:
            _log.warning(
                "config.json: original_max_position_embeddings = %s and, within the scaling, %s; the former counts",
                shown(beside),
                shown(within),
            )
        return beside
    if within is None:
        return max_position_embeddings
    if isinstance(within, bool) or not isinstance(within, int | float) or within != int(within):
        raise ModelError(f"config.json: original_max_position_embeddings = {shown(within)} must be a whole number")
    return int(within)


def _number(scaling: dict[str, Any], key: str) -> float:
    value = scaling[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MAX_NUMBER:
        raise ModelError(
            f"config.json: {key} = {shown(value)} of rotary embedding must be a number above 0, at most {_MAX_NUMBER:g}"
        )
    return float(value)
