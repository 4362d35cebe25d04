"""transformers' side of `compare_cpu.py`: `generate` on one stream, its defaults; torch and transformers alone.

Its argument is a JSON object (see `peers.sides`). It answers on stdout, one JSON object a line: first that the model
is up, then once for each line of stdin, and ends with stdin.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import torch
import transformers


def main() -> None:
    """Answer until stdin ends."""
    settings = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    config = transformers.AutoConfig.from_pretrained(settings["model_dir"], local_files_only=True)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    # Ids that the shape's config.json names as ends would end a stream early.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    versions = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
    }
    answers.write(json.dumps({"versions": versions}) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps(generate(model, json.loads(line))) + "\n")


def generate(model: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """The prompts one after the other."""
    temperature = asked["temperature"]
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    output_tokens = 0
    begin_s = time.perf_counter()
    for ids, count in zip(asked["prompts"], asked["max_tokens"], strict=True):
        prompt = torch.tensor([ids])
        with torch.inference_mode():
            tokens = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, min_new_tokens=count, **sampling
            )
        output_tokens += tokens.shape[1] - len(ids)
    return {
        "wall_s": time.perf_counter() - begin_s,
        "prompt_tokens": sum(map(len, asked["prompts"])),
        "cached_tokens": 0,
        "output_tokens": output_tokens,
    }


if __name__ == "__main__":
    main()
