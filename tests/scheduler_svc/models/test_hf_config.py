"""config.json: equality with transformers' own configuration objects, and refusals."""

import json
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from typing import Any

import pytest
import transformers

from pagewire.scheduler_svc.models.hf_config import read_config
from pagewire.scheduler_svc.startup_errors import ModelError
from pagewire.wire.model import DecoderConfig

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
        "mlp_bias": family == "llama" and config.mlp_bias,
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
        (
            {"num_attention_heads": 32, "num_key_value_heads": 5},
            "num_attention_heads = 32 cannot share num_key_value_heads = 5 evenly",
        ),
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


@pytest.mark.parametrize("family", CLASSES)
def test_every_key_that_transformers_writes_is_known(family: str, caplog: pytest.LogCaptureFixture) -> None:
    """The class's own and those of its base, both as it saves them and as version 4 spelled them."""
    fields = {
        field.name: None for cls in CLASSES[family].__mro__ if is_dataclass(cls) for field in dataclass_fields(cls)
    }
    theirs = json.loads(CLASSES[family]().to_json_string(use_diff=False))
    older = {"torch_dtype": "bfloat16", "rope_theta": 10000.0, "rope_scaling": None, "attention_dropout": 0.1}
    read_config(json.dumps(fields | theirs | older).encode())
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("key", "harmless", "refused"),
    [
        ("partial_rotary_factor", 1.0, 0.25),
        ("rotary_pct", 1.0, 0.25),
        ("use_qk_norm", False, True),
        ("qkv_bias", False, True),
        ("use_bias", False, True),
        ("attn_logit_softcapping", None, 50.0),
        ("final_logit_softcapping", None, 30.0),
        ("logit_scale", 1.0, 0.0625),
        ("logits_scaling", 1.0, 8.0),
        ("embedding_multiplier", 1, 12.0),
        ("residual_multiplier", 1.0, 0.22),
        ("attention_multiplier", None, 0.015625),
        ("query_pre_attn_scalar", None, 256),
        ("sliding_window", None, 4096),
        ("sliding_window_pattern", None, 6),
        ("interleaved_sliding_window", None, 4096),
        ("attention_chunk_size", None, 8192),
        ("layer_types", ["full_attention"] * 32, ["chunked_attention"] * 32),
        ("layer_types", ["full_attention"] * 32, ["full_attention"] * 31),
        ("layer_types", ["full_attention"] * 32, ["sliding_attention"] * 32),
        ("no_rope_layers", [], [1, 1, 1, 0]),
        ("clip_qkv", None, 8.0),
        ("num_local_experts", 0, 8),
        ("hidden_act", "swish", "relu"),
        ("hidden_activation", "silu", "gelu_pytorch_tanh"),
        ("quantization_config", None, {"quant_method": "awq"}),
        ("compression_config", None, {"format": "pack-quantized"}),
        ("is_encoder_decoder", False, True),
        ("add_cross_attention", False, True),
        ("pruned_heads", {}, {"0": [1]}),
        ("per_layer_config", {}, {"0": {"intermediate_size": 8}}),
        ("text_config", None, {"hidden_size": 8}),
        ("alibi", False, True),
    ],
)
def test_what_changes_the_numbers_is_refused_by_name(
    key: str, harmless: Any, refused: Any, caplog: pytest.LogCaptureFixture
) -> None:
    base = read(model_type="llama")
    assert read(model_type="llama", **{key: harmless}) == base
    assert caplog.text == ""
    with pytest.raises(ModelError, match=key):
        read(model_type="llama", **{key: refused})


def test_flags_that_say_what_the_family_is_are_no_news() -> None:
    assert read(model_type="qwen3", qk_norm=True) == read(model_type="qwen3")
    assert read(model_type="qwen2", qkv_bias=True) == read(model_type="qwen2")
    with pytest.raises(ModelError, match="use_qk_norm = False is not served for model_type 'qwen3'; True is"):
        read(model_type="qwen3", use_qk_norm=False)


def test_layers_with_a_window_that_nobody_names() -> None:
    """transformers fails too, with the first request."""
    with pytest.raises(ModelError, match="layer_types has 'sliding_attention', but use_sliding_window"):
        read(model_type="qwen3", num_hidden_layers=1, layer_types=["sliding_attention"], sliding_window=128)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"a_new_key": 3, "another": {}}, "keys that are not known, and not applied: ['a_new_key', 'another']"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}, "auto_map names Python code"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope_theta = 10000.0"),
        ({"rope_scaling": {"type": "linear", "rope_type": "default"}}, "rope_type = 'default' and type = 'linear'"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
            "rope_scaling and rope_parameters differ",
        ),
        (
            {
                "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128},
                "original_max_position_embeddings": 256,
            },
            "original_max_position_embeddings = 256",
        ),
        ({"mlp_bias": True}, "mlp_bias = true is left out: model_type 'qwen3' has no such key"),
        ({"eos_token_id": [1, 10**6]}, "eos_token_id = [1, 1000000] names ids that are not 0 to"),
    ],
)
def test_contradictions_and_unknown_keys_are_said(
    changes: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    raw = {"model_type": "qwen3", "max_position_embeddings": 1024} | changes
    decoder = read(**raw)
    assert words in caplog.text
    theirs = CLASSES["qwen3"].from_dict(json.loads(json.dumps(raw)))
    theirs.standardize_rope_params()  # as its rotary embedding does once more, with what it computes from
    assert ours(decoder) == expected(theirs)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"num_hidden_layers": 10**7}, "num_hidden_layers = 10000000 must be 1 to 1024"),
        ({"num_attention_heads": 10**7, "num_key_value_heads": 10**7}, "num_attention_heads"),
        ({"hidden_size": 10**9}, "hidden_size"),
        ({"intermediate_size": 10**9}, "intermediate_size"),
        ({"max_position_embeddings": 10**9}, "max_position_embeddings"),
        ({"head_dim": 10**6}, "head_dim"),
        ({"rope_theta": 1e300}, "rope_theta"),
        ({"rope_theta": 1.0}, "rope_theta"),
        ({"rope_scaling": {"type": "yarn", "factor": 1e9}}, "factor"),
        ({"rope_scaling": {"type": "yarn", "factor": 1e5}}, "factor"),
        ({"rope_scaling": {"type": "yarn", "factor": 10**4000}}, "factor"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0}},
            "original_max_position_embeddings = 0 must be",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": "8k"}},
            "original_max_position_embeddings = '8k' must be a whole number",
        ),
        ({"use_sliding_window": True, "sliding_window": 0, "max_window_layers": 0}, "sliding_window = 0 must be 1 to"),
    ],
)
def test_every_number_has_a_limit_of_its_own(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ModelError, match=key):
        read(**{"model_type": "qwen3", "max_position_embeddings": 1024} | changes)


def test_a_byte_order_mark_is_passed_over_and_other_encodings_are_named() -> None:
    content = b'{"model_type": "qwen3"}'
    assert read_config(b"\xef\xbb\xbf" + content) == read_config(content)
    with pytest.raises(ModelError, match=r"config\.json is not UTF-8"):
        read_config(b'{"model_type": "qwen3", "a": "\xff"}')
