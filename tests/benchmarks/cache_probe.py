"""Whether a prompt that somebody else sent can be told by its speed: `python tests/benchmarks/cache_probe.py`.

A prober measures the time to the first token of prompts. Before half of them, drawn by chance, somebody sent the same
prompt; before the others, another one of the same length, so that the server has done the same. How well the times tell
which it was is the area under the curve (Mann-Whitney): 0.5 is guessing, 1 is certainty. Asked of the prober's own
tenant, where a cached prefix is to help, and of another one, where nothing may show. Exits with 1 outside the bounds.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.service import LIMIT_S, Service, bearer, serve, stream_request

KEYS = {"ann": "0123456789abcdef", "bob": "fedcba9876543210"}
OPERATOR_KEY = "00112233445566778899"
PROBER = "bob"
MOST_OF_OTHERS = 0.55
LEAST_OF_OWN = 0.9


def first_token_s(service: Service, tenant: str, ids: list[int]) -> tuple[float, int]:
    """Seconds until the first token, and how many of the prompt's were found in the cache."""
    request = stream_request(ids, stopping={"max_tokens": 1})
    began, seconds, cached = time.perf_counter(), 0.0, 0
    for event in service.inference.StreamGenerate(request, metadata=bearer(KEYS[tenant]), timeout=LIMIT_S):
        match event.WhichOneof("event"):
            case "delta":
                seconds = time.perf_counter() - began
            case "usage":
                cached = event.usage.cached_tokens
    return seconds, cached


def area(hits: list[float], misses: list[float]) -> float:
    """How often a hit was faster than a miss, of all pairs; ties count half."""
    won = sum((hit < miss) + 0.5 * (hit == miss) for hit in hits for miss in misses)
    return won / (len(hits) * len(misses))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--trials", type=int, default=400, help="of each kind")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    times: dict[tuple[str, bool], list[float]] = {(tenant, hit): [] for tenant in KEYS for hit in (True, False)}
    seen_of_others = 0

    def prompt() -> list[int]:
        return [draw.randrange(1000, 40000) for _ in range(args.prompt_tokens)]

    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder, "keys")
        keys.write_text("".join(f"{tenant}:{key}\n" for tenant, key in {**KEYS, "admin": OPERATOR_KEY}.items()))
        with serve(
            model=args.model, device="cpu", max_model_len=2048, api_keys_file=keys, operator_key=OPERATOR_KEY
        ) as service:
            for _ in range(3):
                first_token_s(service, PROBER, prompt())
            for _ in range(args.trials):
                for other in draw.sample(sorted(KEYS), len(KEYS)):
                    probed, is_hit = prompt(), draw.random() < 0.5
                    first_token_s(service, other, probed if is_hit else prompt())
                    seconds, cached = first_token_s(service, PROBER, probed)
                    times[other, is_hit].append(seconds)
                    seen_of_others += cached if other != PROBER else 0
    own = area(times[PROBER, True], times[PROBER, False])
    others = area(times["ann", True], times["ann", False])
    what = f"{args.trials} prompts of {args.prompt_tokens} tokens"
    print(f"{what} that the prober's own tenant sent: AUC {own:.3f}, at least {LEAST_OF_OWN}")
    print(f"{what} that another tenant sent: AUC {others:.3f}, {1 - MOST_OF_OTHERS:.2f} to {MOST_OF_OTHERS}")
    print(f"tokens of another tenant's that were found in the cache: {seen_of_others}")
    if own < LEAST_OF_OWN or abs(others - 0.5) > MOST_OF_OTHERS - 0.5 or seen_of_others:
        sys.exit(1)


if __name__ == "__main__":
    main()
