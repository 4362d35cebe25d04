"""vLLM's side of `compare_cpu.py`: the standard library and vLLM alone, run by the Python of vLLM's own environment.

Its argument is a JSON object (see `peers.sides`). It answers on stdout, one JSON object a line: first that the engine
is up, then once for each line of stdin, and ends with stdin. What vLLM itself prints goes to stderr. The engine is
what vLLM makes by default on a CPU, but for the size of its KV cache, the length limit, all cores for the model, and
random weights and ids in place of files.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """Answer until stdin ends."""
    settings = json.loads(sys.argv[1])
    # Before vLLM is imported: its logger takes the stdout that it finds, and its processes inherit it.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(settings["kv_cache_gib"])
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    # By itself it keeps one core free for its other processes: of two cores the model would have one, and be slower.
    os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")

    import torch
    import vllm

    engine = vllm.LLM(
        model=settings["model_dir"],
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=settings["max_model_len"],
        enforce_eager=settings["eager"],
        seed=0,
    )
    versions = {"vllm": vllm.__version__, "torch": torch.__version__, "python": sys.version.split()[0]}
    answers.write(json.dumps({"versions": versions}) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps(generate(vllm, engine, json.loads(line))) + "\n")


def generate(vllm: Any, engine: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """All prompts at once; the time from handing them over until all have ended."""
    if not engine.reset_prefix_cache():
        raise RuntimeError("vLLM did not forget its cached prefixes")
    prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
    parameters = [
        vllm.SamplingParams(temperature=asked["temperature"], max_tokens=count, ignore_eos=True, detokenize=False)
        for count in asked["max_tokens"]
    ]
    begin_s = time.perf_counter()
    outputs = engine.generate(prompts, parameters, use_tqdm=False)
    wall_s = time.perf_counter() - begin_s
    return {
        "wall_s": wall_s,
        "prompt_tokens": sum(len(output.prompt_token_ids) for output in outputs),
        "cached_tokens": sum(output.num_cached_tokens or 0 for output in outputs),
        "output_tokens": sum(len(output.outputs[0].token_ids) for output in outputs),
    }


if __name__ == "__main__":  # vLLM spawns processes, which import this module again
    main()
