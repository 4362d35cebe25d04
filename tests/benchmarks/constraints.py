"""What constraints cost: `python tests/benchmarks/constraints.py [steps] [first-token] [bad]`.

    steps        32 rows held to 32 different schemas against the same rows without, in turn, on the 0.6B shape: the
                 time of a step, from the engine's own counters
    first-token  from the request to the first token, of a schema of 64 kB and of none, SmolLM2
    bad          64 streams, by turns of seconds alone and beside 1,000 bad constraints: percentiles between their
                 tokens, SmolLM2 (bad_constraints.py)

The 0.6B shape gets random weights and SmolLM2's tokenizer, whose 49,152 ids are fewer than its logits.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.bad_constraints import bad
from benchmarks.special_rows import LIMIT_S
from support.service import Service, serve, stream_request
from support.smollm2 import cache_dir, smollm2_file

from pagewire.scheduler_svc.models.gguf_file import read_gguf
from pagewire.scheduler_svc.progress import QuietProgress
from pagewire.v1 import generation_pb2 as pb

NUM_STREAMS = 32
_START_LIMIT_S = 240.0
"""Where a device's kernels are compiled first."""


@contextmanager
def qwen3_shape(tokenizer: Path) -> Iterator[Path]:
    """A checkpoint of random weights with this tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151_936,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=0,
        bos_token_id=None,
    )
    with tempfile.TemporaryDirectory() as directory:
        torch.set_default_dtype(torch.bfloat16)
        Qwen3ForCausalLM(config).save_pretrained(directory)
        (Path(directory) / "tokenizer.json").write_bytes(tokenizer.read_bytes())
        yield Path(directory)


def smollm2_tokenizer() -> Path:
    file = read_gguf(smollm2_file(), "smollm2", cache_dir(), QuietProgress()).tokenizer_file
    assert file is not None
    return Path(file)


def schema(number: int, least: int) -> str:
    """One of many, none of whose texts is short."""
    kinds: list[dict[str, object]] = [
        {"type": "string", "minLength": 3, "maxLength": 12},
        {"type": "integer", "minimum": -(10**number % 999), "maximum": 10**6 + number},
        {"enum": [f"value {number} {index}" for index in range(20)]},
        {"type": "number"},
        {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 5},
    ]
    names = [f"key_{number}_{index}" for index in range(3 + number % 5)]
    entry = {
        "type": "object",
        "properties": {name: kinds[(number + index) % len(kinds)] for index, name in enumerate(names)},
        "required": names,
        "additionalProperties": False,
    }
    return json.dumps({"type": "array", "items": entry, "minItems": least})


def step_ms(service: Service, is_constrained: bool, num_tokens: int) -> tuple[float, float]:
    """Milliseconds of the device's time per step of one round, and of anybody's."""
    before = service.load()
    began = time.monotonic()
    calls = []
    for index in range(NUM_STREAMS):
        constraint = pb.Constraint(json_schema=schema(index, 100)) if is_constrained else None
        stopping = {"max_tokens": num_tokens, "ignore_eos": not is_constrained}
        request = stream_request(
            [index + 1] * 8,
            sampling={"temperature": 1, "seed": index},
            stopping=stopping,
            constraint=constraint,
        )
        calls.append(service.inference.StreamGenerate(request, timeout=LIMIT_S))
    for call in calls:
        assert sum(len(event.delta.tokens) for event in call) == num_tokens
    wall_s = time.monotonic() - began
    after = service.load()
    num_steps = after.steps - before.steps
    return (after.worker_busy_us - before.worker_busy_us) / num_steps / 1000, 1000 * wall_s / num_steps


def steps(rounds: int, num_tokens: int, device: str, tokenizer: Path) -> None:
    found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    limits = {"max_num_seqs": NUM_STREAMS, "max_model_len": 2048, "dtype": "bfloat16"}
    with (
        qwen3_shape(tokenizer) as model,
        serve(model=str(model), device=device, ready_limit_s=_START_LIMIT_S, **limits) as service,
    ):
        step_ms(service, True, num_tokens)
        for index in range(rounds):
            for is_constrained in (False, True) if index % 2 else (True, False):
                found[is_constrained].append(step_ms(service, is_constrained, num_tokens))
    for index, whose in enumerate(("of the device", "from step to step")):
        medians = {kind: statistics.median(each[index] for each in times) for kind, times in found.items()}
        for is_constrained, times in found.items():
            name = "constrained" if is_constrained else "plain"
            each = " ".join(f"{pair[index]:.2f}" for pair in times)
            print(f"{name:12} {medians[is_constrained]:7.2f} ms {whose}   (rounds {each})")
        print(f"ratio {medians[True] / medians[False]:.3f}")


def first_token(rounds: int) -> None:
    names = [f"field_{index}" for index in range(550)]
    large = json.dumps(
        {
            "type": "object",
            "properties": {name: {"type": "string", "description": "x" * 45, "maxLength": 40} for name in names},
            "required": names,
            "additionalProperties": False,
        }
    )
    with serve(model="smollm2-135m", device="cpu", max_num_seqs=8, max_model_len=512) as service:

        def ms(constraint: pb.Constraint | None) -> float:
            request = stream_request(text="Someone: ", stopping={"max_tokens": 2}, constraint=constraint)
            began = time.monotonic()
            for event in service.inference.StreamGenerate(request, timeout=LIMIT_S):
                if event.HasField("delta"):
                    return 1000 * (time.monotonic() - began)
            raise AssertionError("no token")

        print(f"the first constraint of all    {ms(pb.Constraint(regex='a+')):7.1f} ms")
        print(f"none                           {statistics.median(ms(None) for _ in range(rounds)):7.1f} ms")
        new = [ms(pb.Constraint(json_schema=large + " " * number)) for number in range(rounds)]
        print(f"a schema of {len(large)} bytes, new   {statistics.median(new):7.1f} ms, at most {max(new):.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["steps", "first-token", "bad"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=40, help="of each output")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="of the steps (cpu)")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="of the steps: a tokenizer.json (SmolLM2's)")
    parser.add_argument("--bad", type=int, default=1000, help="bad constraints a round")
    args = parser.parse_args()
    for part in args.parts:
        print(f"== {part}")
        match part:
            case "steps":
                steps(args.rounds, args.tokens, args.device, args.tokenizer or smollm2_tokenizer())
            case "first-token":
                first_token(args.rounds)
            case "bad":
                bad(args.rounds, args.bad, 64, 4 * args.tokens)
            case _:
                parser.error(f"{part} is no part")


if __name__ == "__main__":
    main()
