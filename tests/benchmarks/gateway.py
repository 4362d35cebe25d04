"""What the gateway costs: `python tests/benchmarks/gateway.py [--streams N] [--tokens N] [--rounds N]`.

A service without a model (`--device sim`) with `--openai`, and the load client on the same cores. Prints the tokens a
second of so many streams through one gateway process, of a device that answers at once and of one that takes its time,
and how much later the first token of a lone stream comes by HTTP than by gRPC, asked in turn.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.service import Service, serve, stream_request

from pagewire.client.transport import Transport
from pagewire.v1 import inference_pb2_grpc

_LIMIT_S = 120.0
_MODEL = "smollm2-135m"
"""Its tokenizer, for without one there is no text to send."""
_PROMPT = list(range(1, 33))


async def stream(address: tuple[str, int], max_tokens: int) -> tuple[float, int, int]:
    """Seconds until the first token, tokens, and events of one stream over a connection of its own."""
    body = {
        "model": _MODEL,
        "prompt": _PROMPT,
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    content = json.dumps(body).encode()
    began_s = time.perf_counter()
    reader, writer = await asyncio.open_connection(*address)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\nconnection: close\r\n\r\n"
    writer.write(head.encode() + content)
    first_s, num_events, last = 0.0, 0, b""
    async with asyncio.timeout(_LIMIT_S):
        async for line in reader:
            if line.startswith(b"data: {"):
                first_s = first_s or time.perf_counter() - began_s
                num_events += 1
                last = line
    writer.close()
    return first_s, json.loads(last.removeprefix(b"data: "))["usage"]["completion_tokens"], num_events


async def rate(address: tuple[str, int], num_streams: int, max_tokens: int) -> tuple[float, float]:
    """Tokens a second of all together, and events a token."""
    began_s = time.perf_counter()
    found = await asyncio.gather(*[stream(address, max_tokens) for _ in range(num_streams)])
    wall_s = time.perf_counter() - began_s
    tokens = sum(tokens for _, tokens, _ in found)
    assert tokens == num_streams * max_tokens
    return tokens / wall_s, sum(events for _, _, events in found) / tokens


async def first_by_grpc(stub: inference_pb2_grpc.InferenceServiceStub) -> float:
    """Seconds until the first token of one stream."""
    began_s = time.perf_counter()
    call = stub.StreamGenerate(stream_request(_PROMPT, stopping={"max_tokens": 4, "ignore_eos": True}))
    first_s = 0.0
    async for message in call:
        if message.HasField("delta"):
            first_s = first_s or time.perf_counter() - began_s
    return first_s


def address_of(service: Service) -> tuple[str, int]:
    host, port = service.said["openai_url"].removeprefix("http://").removesuffix("/v1").split(":")
    return host, int(port)


async def measure_rate(service: Service, args: argparse.Namespace) -> None:
    address = address_of(service)
    await rate(address, 8, 20)  # warms up
    rates = [await rate(address, args.streams, args.tokens) for _ in range(args.rounds)]
    each = " ".join(f"{tokens_per_s:,.0f}" for tokens_per_s, _ in rates)
    events = statistics.median(events for _, events in rates)
    median = statistics.median(tokens_per_s for tokens_per_s, _ in rates)
    print(f"{args.streams} streams: {median:,.0f} tokens/s, {events:.3f} events a token   (rounds {each})")


async def measure_first(service: Service, args: argparse.Namespace) -> None:
    async with Transport(target=service.address).open_aio() as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        by_http, by_grpc = [], []
        for _ in range(args.firsts):
            by_grpc.append(await first_by_grpc(stub))
            by_http.append((await stream(address_of(service), 4))[0])
    http_ms, grpc_ms = (1000 * statistics.median(each) for each in (by_http, by_grpc))
    print(f"the first token after {http_ms:.2f} ms by HTTP, its connection included, and {grpc_ms:.2f} ms by gRPC")
    print(f"later by {http_ms - grpc_ms:.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=500, help="of each stream")
    parser.add_argument("--step-us", type=int, default=4000, help="of a device that takes its time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--firsts", type=int, default=100, help="lone streams by either way")
    args = parser.parse_args()
    limits = {"model": _MODEL, "openai": "127.0.0.1:0", "max_num_seqs": max(64, args.streams)}
    print("a device that answers at once: tokens join while a message waits")
    with serve(**limits) as service:
        asyncio.run(measure_rate(service, args))
        asyncio.run(measure_first(service, args))
    print(f"a step every {args.step_us} µs: {1e6 * args.streams / args.step_us:,.0f} tokens/s at most")
    with serve(**limits, sim_step_us=args.step_us) as service:
        asyncio.run(measure_rate(service, args))


if __name__ == "__main__":
    main()
