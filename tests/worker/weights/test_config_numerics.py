"""From config.json to logits: what supervisor and worker make of the files, against transformers on the same files.

The files are those that version 4 and others wrote: older spellings, and two places that say different things.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.batches import PagedDriver
from support.checkpoints import Checkpoint
from transformers import AutoModelForCausalLM

from pagewire.scheduler_svc.models.hf_directory import read_directory
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.attention.paged_torch import PagedTorchAttention
from pagewire.worker.weights.build import load_decoder

PROMPT = [(11 * i * i + 5 * i + 3) % 256 for i in range(150)]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("family", "changes", "removed"),
    [
        ("llama", {"rope_theta": 500.0}, ["rope_parameters"]),
        ("llama", {"rope_theta": 500.0, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}, []),
        ("llama", {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 3.0}}, ["rope_parameters"]),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 3.0}, "rope_theta": 1e4}, []),
        ("llama", {"rope_scaling": {"rope_type": "linear", "type": "default", "factor": 3.0}}, ["rope_parameters"]),
        ("llama", {"rope_scaling": LLAMA3, "rope_theta": 1e4}, ["rope_parameters"]),
        ("llama", {"hidden_act": "swish"}, []),
        ("llama", {"num_key_value_heads": 2, "head_dim": 8, "pretraining_tp": 2, "attention_dropout": 0.5}, []),
        ("llama", {"rms_norm_eps": 0.1}, []),
        ("qwen3-tied", {"rope_scaling": YARN, "rope_theta": 1e4}, ["rope_parameters"]),
        ("qwen3-tied", {"rope_scaling": YARN | {"beta_fast": 16, "beta_slow": 2}}, ["rope_parameters"]),
        ("qwen3-tied", {"rope_scaling": YARN | {"attention_factor": 1.5}}, ["rope_parameters"]),
        ("qwen3-tied", {"rope_scaling": YARN, "original_max_position_embeddings": 128}, ["rope_parameters"]),
        ("qwen3-tied", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, ["rope_parameters"]),
        ("qwen3-tied", {"rope_scaling": {}, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}, []),
        ("qwen3-tied", {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 0}, []),
        ("qwen2", {"rope_theta": 50.0, "attention_bias": False}, ["rope_parameters"]),
        ("mistral", {"rope_theta": 50.0, "mlp_bias": True}, ["rope_parameters", "head_dim"]),
    ],
)
def test_logits_are_those_of_transformers(
    checkpoint_of: Callable[[str], Checkpoint],
    tmp_path: Path,
    family: str,
    changes: dict[str, Any],
    removed: list[str],
) -> None:
    checkpoint = checkpoint_of(family)
    config = json.loads((checkpoint.directory / "config.json").read_text()) | changes
    for key in removed:
        del config[key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(checkpoint.spec.weights_files[0])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        expected = theirs(torch.tensor([PROMPT])).logits[0, -1]
        unchanged = checkpoint.hf_model(torch.tensor([PROMPT])).logits[0, -1]
    spec = read_directory(tmp_path, "m", weights_needed=True, cache_dir=tmp_path / "cache")
    decoder = load_decoder(spec, "float32", PagedTorchAttention(), lambda stage, fraction: None)
    ours = PagedDriver(decoder, KVCache(decoder.config, 16, 16, torch.float32)).step({0: PROMPT})[0]
    torch.testing.assert_close(ours, expected, rtol=2e-4, atol=2e-4)
    if any(key.startswith(("rope", "rms")) for key in changes) and changes.get("rope_scaling") != {}:
        assert not torch.allclose(unchanged, expected, rtol=2e-4, atol=2e-4), "the key would not have been missed"
