"""What constraints cost: `python tests/benchmarks/constraints.py [steps] [first-token] [bad]`.

    steps        32 rows held to 32 different schemas against the same rows without, in turn, on the 0.6B shape: the
                 time of a step, from the engine's own counters
    first-token  from the request to the first token, of a schema of 64 kB and of none, SmolLM2
    bad          64 streams, by turns of seconds alone and beside 1,000 bad constraints: the 99th percentile between
                 their tokens, SmolLM2

The 0.6B shape gets random weights and SmolLM2's tokenizer, whose 49,152 ids are fewer than its logits.
"""

import argparse
import itertools
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import grpc
import numpy as np
from benchmarks.special_rows import LIMIT_S
from support.service import Service, generation, serve, stream_request
from support.smollm2 import cache_dir, smollm2_file

from pagewire.scheduler_svc.models.gguf_file import read_gguf
from pagewire.scheduler_svc.progress import QuietProgress
from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2, inference_pb2_grpc

NUM_STREAMS = 32
_WINDOW_S = 4.0
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


def _bad_ones() -> Iterator[pb.Constraint]:
    """No two alike."""
    for number in itertools.count():
        yield pb.Constraint(json_schema=f'{{"a{number}":' + '{"a":' * 20_000 + "1" + "}" * 20_001)
        yield pb.Constraint(json_schema=f'{{"type": "nothing {number}"}}')
        yield pb.Constraint(regex="(" * 60_000 + f"a{number}" + ")" * 60_000)
        yield pb.Constraint(regex=f"(a{{1,1000}}){{1,1000}}{number}(")
        yield pb.Constraint(regex=f"{number}(")
        yield pb.Constraint(grammar="start: " + "(" * 60_000 + f'"a{number}"' + ")" * 60_000)
        yield pb.Constraint(grammar=f"root{number} ::= " + "(" * 60_000)
        yield pb.Constraint(grammar=f'start: start "{number}"')
        yield pb.Constraint(choice=pb.Choices())


def refuse(address: str, num_bad: int, pause_s: float, began_s: float) -> None:
    """Ask for so many bad ones in every second window; prints how many it was, and how long the slowest took.

    Behind everything else on the machine: whoever asks is a client, whose processor would be its own. What is measured
    is what the service's share of a refusal takes from the streams.
    """
    os.nice(19)
    stub = inference_pb2_grpc.InferenceServiceStub(grpc.insecure_channel(address))
    slowest_s, num_refused = 0.0, 0
    requests = [
        generation(text="x", constraint=constraint, stopping={"max_tokens": 5})
        for constraint in itertools.islice(_bad_ones(), num_bad)
    ]
    while num_refused < num_bad and not select.select([sys.stdin], [], [], pause_s)[0]:
        began = time.monotonic()
        if not _is_beside(began - began_s):
            continue
        try:
            stub.Generate(inference_pb2.GenerateRequest(generation=requests[num_refused]), timeout=LIMIT_S)
            raise AssertionError(f"{requests[num_refused]} was accepted")
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                raise
        slowest_s = max(slowest_s, time.monotonic() - began)
        num_refused += 1
    print(json.dumps({"refused": num_refused, "slowest_ms": round(1000 * slowest_s)}))


def _is_beside(elapsed_s: float) -> bool:
    """Whether bad ones are asked for at this time. A machine's speed and a step's length change over minutes;
    windows of seconds in turn see the same of both."""
    return elapsed_s // _WINDOW_S % 2 == 1


def bad(rounds: int, num_bad: int, num_streams: int, num_tokens: int) -> None:
    # In fp32, where a stream's tokens do not depend on what is computed beside it.
    settings = {"dtype": "float32", "max_num_seqs": num_streams + 8, "max_model_len": 2048}
    with serve(model="smollm2-135m", device="cpu", **settings) as service:

        def streams() -> tuple[list[bytes], list[tuple[float, float]]]:
            """Texts; when messages came, and seconds since those before them."""
            texts: list[bytes] = [b""] * num_streams
            gaps: list[tuple[float, float]] = []

            def read(index: int) -> None:
                request = stream_request(
                    [index + 1] * 8,
                    sampling={"temperature": 0},
                    stopping={"max_tokens": num_tokens, "ignore_eos": True},
                )
                last = None
                for event in service.inference.StreamGenerate(request, timeout=LIMIT_S):
                    if event.HasField("delta"):
                        now = time.monotonic()
                        if last is not None:
                            gaps.append((now, now - last))
                        last = now
                        texts[index] += b"".join(token.text for token in event.delta.tokens)

            _all([lambda index=index: read(index) for index in range(num_streams)])  # type: ignore[misc]
            return texts, gaps

        began = time.monotonic()
        expected, _ = streams()
        # A bad one takes a few milliseconds itself.
        pause_s = 0.3 * (time.monotonic() - began) / num_bad
        found: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(rounds):
            began = time.monotonic()
            command = [sys.executable, __file__, "refuse", service.address, str(num_bad), str(pause_s), str(began)]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
                texts, gaps = streams()
                said = json.loads(process.communicate()[0])
            assert texts == expected, "a stream is not what it was alone"
            print(f"{said['refused']} refused, the slowest after {said['slowest_ms']} ms; streams identical")
            own: dict[bool, list[float]] = {False: [], True: []}
            for ended, gap_s in gaps:
                if _is_beside(ended - began) == _is_beside(ended - gap_s - began):
                    own[_is_beside(ended - began)].append(1000 * gap_s)
            _print_p99(own)
            for is_beside, each in own.items():
                found[is_beside] += each
    print("all rounds")
    _print_p99(found)


def _print_p99(gaps_ms: dict[bool, list[float]]) -> None:
    alone, beside = (float(np.percentile(gaps_ms[is_beside], 99)) for is_beside in (False, True))
    print(f"p99 between tokens: alone {alone:.1f} ms, beside {beside:.1f} ms, ratio {beside / alone:.3f}")


def _all(work: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=each) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["steps", "first-token", "bad"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=40, help="of each output")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="of the steps (cpu)")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="of the steps: a tokenizer.json (SmolLM2's)")
    parser.add_argument("--bad", type=int, default=1000, help="bad constraints a round")
    if sys.argv[1:2] == ["refuse"]:
        address, num_bad, pause_s, began_s = sys.argv[2:]
        refuse(address, int(num_bad), float(pause_s), float(began_s))
        return
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
