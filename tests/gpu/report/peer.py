"""transformers' continuous batching on the same shape, prompts and lengths: `generate_batch`."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from gpu.report.checks import Skipped
from gpu.report.results import PartRecord
from gpu.report.scale import Scale

from pagewire.client.bench.workload import NANO_VLLM_MAX_ID, Job, Span, nano_vllm
from pagewire.scheduler_svc.models.random_shapes import RANDOM_SHAPES
from pagewire.wire.model import DecoderConfig

Sizes = Mapping[str, Any]
"""Of its cache and its steps; what is not said it works out from the device's memory."""

_SIZES: tuple[Sizes, ...] = ({}, {"max_batch_tokens": 1024})
"""As it is; and, where it asked for more than there is, with smaller steps."""
_DRY_SIZES: tuple[Sizes, ...] = ({"num_blocks": 64, "max_batch_tokens": 128, "use_cuda_graph": False},)
"""On a CPU it would take all of the machine's memory for its cache."""


def run(scale: Scale, device: torch.device, record: PartRecord) -> float:
    """Output tokens a second. Raises Skipped where transformers is not here or has no continuous batching."""
    try:
        import transformers
        from transformers import ContinuousBatchingConfig  # noqa: F401
    except ImportError as error:
        raise Skipped(f"no transformers with continuous batching: {error}") from error
    record.add(versions={"transformers": transformers.__version__, "torch": str(torch.__version__)})
    c = RANDOM_SHAPES[scale.small_shape]
    model = _model(c, device, torch.float32 if scale.is_dry else torch.bfloat16)
    *firsts, last = _DRY_SIZES if scale.is_dry else _SIZES
    for sizes in firsts:
        try:
            return _rate(model, c, scale, sizes)
        except Exception:
            traceback.print_exc()
            model.destroy_cached_continuous_batching_manager()
        gc.collect()
        torch.cuda.empty_cache()  # it counts what torch keeps for reuse as taken
    record.add(sizes=dict(last))
    return _rate(model, c, scale, last)


def _model(c: DecoderConfig, device: torch.device, dtype: torch.dtype) -> Any:
    import transformers

    config = transformers.Qwen3Config(
        hidden_size=c.hidden_size,
        intermediate_size=c.intermediate_size,
        num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads,
        num_key_value_heads=c.num_kv_heads,
        head_dim=c.head_dim,
        vocab_size=c.vocab_size,
        max_position_embeddings=c.max_position_embeddings,
        tie_word_embeddings=c.tie_word_embeddings,
    )
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


def _rate(model: Any, c: DecoderConfig, scale: Scale, sizes: Sizes) -> float:
    """Of the second of two runs; the first warms up, and the manager stays for the other. Raises what it raises;
    ValueError where tokens are missing, for it raises nothing where its own thread ended."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    generation = GenerationConfig(
        do_sample=True,
        temperature=0.6,
        top_k=0,
        max_new_tokens=scale.peer_output,
        eos_token_id=-1,
        pad_token_id=0,
    )
    max_id = min(NANO_VLLM_MAX_ID, c.vocab_size - 1)
    rate = 0.0
    for seed in (2001, 2000):
        output = Span(scale.peer_output, scale.peer_output)
        prompts = _ids(nano_vllm(scale.peer_seqs, Span(*scale.peer_prompt), output, seed, max_id))
        begin_s = time.perf_counter()
        answers = model.generate_batch(
            prompts,
            generation_config=generation,
            continuous_batching_config=ContinuousBatchingConfig(**sizes),
            persistent_manager=True,
            warmup=not scale.is_dry,
        )
        wall_s = time.perf_counter() - begin_s
        num_tokens = sum(len(answer.generated_tokens) for answer in answers.values())
        if num_tokens != scale.peer_seqs * scale.peer_output:
            raise ValueError(f"transformers made {num_tokens} tokens of {scale.peer_seqs * scale.peer_output}")
        rate = num_tokens / wall_s
    model.destroy_cached_continuous_batching_manager()
    return rate


def _ids(jobs: Sequence[Job]) -> list[list[int]]:
    return [[token for token in job.prompt if isinstance(token, int)] for job in jobs]
