"""What a request that uses every control costs those beside it: `python tests/benchmarks/special_rows.py`.

Serves a model and streams 32 outputs at once, all plain or with one that asks for everything (penalties, bias, banned
ids, filters, 20 candidates), in turn. Prints the time of a step, from the engine's own counters: the device's busy time
over the steps of each round.
"""

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.service import Service, generation, serve

from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2

NUM_STREAMS = 32
LIMIT_S = 600.0
EVERYTHING = {
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.1,
    "logit_bias": dict.fromkeys(range(0, 3000, 10), 1.0),
    "banned_token_ids": list(range(5, 3000, 10)),
    "top_p": 0.95,
    "min_p": 0.01,
}
REPORTED = pb.Output(logprobs=True, num_candidates=20, processed_logprobs=True, logprob_token_ids=range(32))


def step_ms(service: Service, num_special: int, num_tokens: int) -> float:
    """Milliseconds of the device's time per step of one round."""
    before = service.load()
    calls = []
    for index in range(NUM_STREAMS):
        is_special = index < num_special
        request = generation(
            [index + 1] * 8,
            sampling={"temperature": 0.8, "seed": index, **(EVERYTHING if is_special else {})},
            stopping={"max_tokens": num_tokens, "ignore_eos": True},
            output=REPORTED if is_special else pb.Output(),
        )
        stream = inference_pb2.StreamGenerateRequest(generation=request)
        calls.append(service.inference.StreamGenerate(stream, timeout=LIMIT_S))
    for call in calls:
        for _ in call:
            pass
    after = service.load()
    return (after.worker_busy_us - before.worker_busy_us) / (after.steps - before.steps) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:qwen3-0.6b")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--tokens", type=int, default=40, help="of each output")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    found: dict[int, list[float]] = {0: [], 1: []}
    # A device's kernels may have to be compiled first.
    limits = {"max_num_seqs": NUM_STREAMS, "max_model_len": 512, "ready_limit_s": LIMIT_S}
    with serve(model=args.model, device=args.device, **limits) as service:
        step_ms(service, 1, args.tokens)
        for index in range(args.rounds):
            for num_special in (0, 1) if index % 2 else (1, 0):
                found[num_special].append(step_ms(service, num_special, args.tokens))
    for num_special, times in found.items():
        rounds = " ".join(f"{each:.1f}" for each in times)
        print(f"{num_special} of {NUM_STREAMS} special: {statistics.median(times):7.1f} ms a step   (rounds {rounds})")
    print(f"ratio {statistics.median(found[1]) / statistics.median(found[0]):.3f}")


if __name__ == "__main__":
    main()
