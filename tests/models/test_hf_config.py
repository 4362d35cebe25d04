"""config.json and generation_config.json: equality with transformers' own configuration objects, and refusals."""

import json
from typing import Any

import pytest
import transformers

from pagewire.scheduler_svc.models.hf_config import read_config
from pagewire.scheduler_svc.models.hf_generation import read_generation_config
from pagewire.scheduler_svc.startup_errors import ModelError
from pagewire.wire.model import DecoderConfig, SamplingDefaults

CLASSES = {
    "qwen3": transformers.Qwen3Config,
    "qwen2": transformers.Qwen2Config,
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
}
LLAMA3_ROPE = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def read(**config: Any) -> DecoderConfig:
    return read_config(json.dumps(config).encode()).decoder


def expected(config: Any) -> dict[str, Any]:
    """What transformers' object says, in our words; the biases are those of its modelling code."""
    family = config.model_type
    rope = {key: value for key, value in config.rope_parameters.items() if value is not None}
    kind = rope.pop("rope_type")
    rope.pop("type", None)  # version 4's name for the same, kept beside it
    biased = getattr(config, "attention_bias", False)
    windowed = "sliding_attention" in (getattr(config, "layer_types", None) or ()) or family == "mistral"
    return {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": rope.pop("rope_theta"),
        "rope_kind": kind,
        "rope": rope,
        "tie_word_embeddings": config.tie_word_embeddings,
        "qkv_bias": family == "qwen2" or biased,
        "o_bias": family in ("llama", "qwen3") and biased,
        "mlp_bias": getattr(config, "mlp_bias", False),
        "sliding_window": getattr(config, "sliding_window", None) if windowed else None,
    }


def ours(decoder: DecoderConfig) -> dict[str, Any]:
    scaling = decoder.rope_scaling
    names = DecoderConfig.__struct_fields__
    values = {name: getattr(decoder, name) for name in names if name not in ("architecture", "qk_norm", "rope_scaling")}
    parameters = {}
    if scaling is not None:
        fields = scaling.__struct_fields__
        parameters = {name: getattr(scaling, name) for name in fields if name != "kind"}
    rope = {name: value for name, value in parameters.items() if value is not None}
    return values | {"rope_kind": "default" if scaling is None else scaling.kind, "rope": rope}


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2, "tie_word_embeddings": True},
        {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128},
        {"attention_bias": True, "mlp_bias": True},
        {"rope_theta": 1e6, "rms_norm_eps": 1e-5, "max_position_embeddings": 40960},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3_ROPE}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3_ROPE}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
        {"rope_scaling": {"type": "yarn", "factor": 4.0}, "max_position_embeddings": 32768},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 2.0, "beta_fast": 16.0}},
        {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 4},
        {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 99},
        {"use_sliding_window": False, "sliding_window": 128, "max_window_layers": 4},
        {"sliding_window": None},
    ],
)
def test_as_transformers_reads_it(family: str, changes: dict[str, Any]) -> None:
    if family in ("qwen2", "mistral"):
        changes = {key: value for key, value in changes.items() if key not in ("attention_bias", "mlp_bias")}
    if family == "llama" and changes.get("use_sliding_window"):
        with pytest.raises(ModelError, match="sliding_window = 128 is not served for model_type 'llama'"):
            read(model_type=family, **changes)
        return
    if family == "qwen3":
        changes = {key: value for key, value in changes.items() if key != "mlp_bias"}
    raw = {"model_type": family} | changes
    theirs = CLASSES[family].from_dict(json.loads(json.dumps(raw)))
    assert ours(read(**raw)) == expected(theirs)
    # The same once more from the file that transformers would write of it: version 5's spelling.
    saved = json.loads(theirs.to_json_string(use_diff=False))
    assert ours(read(**saved)) == expected(theirs)


@pytest.mark.parametrize(("family", "eos"), [("qwen3", ()), ("qwen2", ()), ("llama", (2,)), ("mistral", (2,))])
def test_default_end_of_sequence(family: str, eos: tuple[int, ...]) -> None:
    assert read_config(json.dumps({"model_type": family}).encode()).eos_token_ids == eos


def test_end_of_sequence_may_be_a_list_and_ids_beyond_the_embedding_are_dropped() -> None:
    config = read_config(b'{"model_type": "qwen3", "vocab_size": 100, "eos_token_id": [7, 5, 7, 100]}')
    assert config.eos_token_ids == (7, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen3_moe"}, "model_type = 'qwen3_moe' is not served; qwen3, qwen2, llama, mistral are"),
        ({"model_type": None}, "model_type"),
        (
            {"architectures": ["Qwen3ForSequenceClassification"]},
            r"architectures = \['Qwen3ForSequenceClassification'\]",
        ),
        ({"quantization_config": {"quant_method": "gptq"}}, "quant_method = 'gptq' is not served"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not served; 'silu' is"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type = 'dynamic' is not served"),
        ({"rope_scaling": {"type": "longrope"}}, "rope_type = 'longrope' is not served"),
        ({"rope_scaling": {"type": "linear"}}, "rope_type 'linear' lacks factor"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor = '2' of rotary embedding must be a number"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 0.7}}, "mscale = 0.7 of rope_type 'yarn'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}}, "truncate = False of rope_type 'yarn'"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention = .* is not served"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not served"),
        ({"hidden_size": "many"}, r"Expected `int`, got `str` - at `\$.hidden_size`"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0 must be 1 to"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0 must be at least 1"),
        ({"num_attention_heads": 32, "num_key_value_heads": 5}, "32 heads cannot share 5 key-value heads"),
        ({"head_dim": 63}, "head_dim = 63 is odd"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps = -1.0"),
        ({"vocab_size": 2**40}, "vocab_size = 1099511627776 must be 1 to"),
    ],
)
def test_refusals_name_key_and_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read(**{"model_type": "qwen3"} | changes)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_garbage_is_refused(content: bytes) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        read_config(content)


@pytest.mark.parametrize(
    ("config", "eos", "sampling"),
    [
        ({}, (), SamplingDefaults()),
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [5, 3]},
            (5, 3),
            SamplingDefaults(temperature=0.6, top_k=20, top_p=0.95),
        ),
        ({"do_sample": False, "temperature": 0.6, "eos_token_id": 4}, (4,), SamplingDefaults(temperature=0.0)),
        ({"temperature": None, "top_k": None, "top_p": None}, (), SamplingDefaults()),
    ],
)
def test_generation_config(config: dict[str, Any], eos: tuple[int, ...], sampling: SamplingDefaults) -> None:
    generation = read_generation_config(json.dumps(config).encode(), vocab_size=100)
    assert (generation.eos_token_ids, generation.sampling) == (eos, sampling)


def test_generation_config_out_of_range() -> None:
    with pytest.raises(ModelError, match=r"generation_config\.json: top_p = 1\.5 must be 0\.0 to 1\.0"):
        read_generation_config(b'{"top_p": 1.5}', 100)
