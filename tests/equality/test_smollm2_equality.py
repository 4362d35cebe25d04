"""SmolLM2 from its GGUF file, against transformers' own reading of that file, greedy and in fp32."""

import os

import pytest
import torch
from support.decoders import KINDS, served_model_for
from support.local_engine import LocalEngine
from support.smollm2 import cache_dir, smollm2_file
from transformers import AutoModelForCausalLM

from pagewire.scheduler_svc.models.resolve import resolve_model
from pagewire.scheduler_svc.progress import QuietProgress
from pagewire.wire.launch import CpuKernelKind

pytestmark = [pytest.mark.slow, pytest.mark.model]

NUM_TOKENS = 64
PROMPTS = [
    [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198],
    [504, 2365, 6354, 16438],
    [(97 * i * i + 31 * i + 1000) % 49152 for i in range(150)],
]


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    """What transformers says after every prompt."""
    file = smollm2_file()
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    outputs = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            # eos_token_id: the comparison goes on past the end of the answer, as ours does.
            output = theirs.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NUM_TOKENS,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        outputs.append(output[0, len(prompt) :].tolist())
    return outputs


@pytest.mark.parametrize("kind", KINDS)
def test_64_greedy_tokens_are_those_of_transformers(expected: list[list[int]], kind: CpuKernelKind) -> None:
    spec = resolve_model(
        "smollm2-135m",
        served_name=None,
        weights_needed=True,
        cache_dir=cache_dir(),
        environ=os.environ,
        progress=QuietProgress(),
    )
    engine = LocalEngine(served_model_for(spec, "float32", kind), block_size=32, chunk=64)
    for handle, prompt in enumerate(PROMPTS):
        engine.submit(handle, prompt, NUM_TOKENS)
    engine.run()
    assert [engine.outputs[handle] for handle in range(len(PROMPTS))] == expected
