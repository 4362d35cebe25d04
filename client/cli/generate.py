"""`pagewire generate`: answers prompts, one streamed to the terminal, several at once with the answers in order."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from pagewire.client.cli import connection, inputs, parameters, tools
from pagewire.client.cli.answer import AnswerPrinter, as_text
from pagewire.client.cli.connection import Connected
from pagewire.client.cli.logprobs import print_logprobs
from pagewire.client.cli.measure import Measured, as_json, measure
from pagewire.client.cli.printing import complain, note, write, write_json
from pagewire.client.errors import InvalidRequest, PagewireError
from pagewire.client.prompts import Chat, Parameters, Prompt
from pagewire.client.types import Delta

DEFAULT_CONCURRENCY = 16

_TITLE_CHARACTERS = 60


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command and its flags."""
    parser = commands.add_parser(
        "generate",
        help="answer one prompt or several",
        description="Answer prompts. Text is one message of a user where the model has a chat template.",
    )
    inputs.add_flags(parser)
    parser.add_argument("--n", type=int, metavar="N", help="answers to each prompt (1)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per prompt, each on a line")
    parser.add_argument(
        "--concurrency",
        type=int,
        default=DEFAULT_CONCURRENCY,
        metavar="N",
        help=f"prompts under way at once ({DEFAULT_CONCURRENCY})",
    )
    parameters.add_flags(parser)
    tools.add_flags(parser)
    connection.add_model_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when all prompts were answered, 1 when some were not."""
    if args.concurrency < 1:
        raise InvalidRequest(f"--concurrency is {args.concurrency}; it must be at least 1")
    gathered = inputs.gather(args)
    with connection.connect(args) as connected:
        chosen: Parameters = {**parameters.parameters(args, connected.model.name), "n": args.n}
        prompts = [inputs.dress(prompt, args, connected.model.capabilities) for prompt in gathered]
        if len(prompts) == 1:
            return _one(connected, prompts[0], chosen, args)
        return _several(connected, gathered, prompts, chosen, args)


def _one(connected: Connected, prompt: Prompt, chosen: Parameters, args: argparse.Namespace) -> int:
    streams_text = not args.json and connected.model.capabilities.text and (args.n or 1) == 1
    started = time.monotonic()
    printer = AnswerPrinter()
    show = printer.show if isinstance(prompt, Chat) else printer.show_text
    with connected.client.stream(prompt, timeout_s=args.timeout, **chosen) as stream:
        measured = measure(stream, started, show if streams_text else _ignore)
    if args.json:
        write_json(as_json(measured, connected.model.name))
    else:
        if not streams_text:
            _print_outputs(measured)
        write("\n")
        print_logprobs(measured.result)
        note(_summary(measured))
    return 0


def _several(
    connected: Connected,
    gathered: Sequence[str | Prompt],
    prompts: Sequence[Prompt],
    chosen: Parameters,
    args: argparse.Namespace,
) -> int:
    failed = 0
    for index, outcome in enumerate(_outcomes(connected, prompts, chosen, args)):
        if isinstance(outcome, Measured):
            if args.json:
                write_json({"index": index, **as_json(outcome, connected.model.name)})
            else:
                write(f"{'' if index == 0 else chr(10)}==> {index + 1}: {_title(gathered[index])} <==\n")
                _print_outputs(outcome)
                write("\n")
                print_logprobs(outcome.result)
            continue
        failed += 1
        if args.json:
            kind, field = type(outcome).__name__, outcome.field if isinstance(outcome, InvalidRequest) else ""
            write_json({"index": index, "error": {"type": kind, "message": str(outcome), "field": field}})
        complain(f"prompt {index + 1}: {outcome}")
    return 1 if failed else 0


def _outcomes(
    connected: Connected, prompts: Sequence[Prompt], chosen: Parameters, args: argparse.Namespace
) -> Iterator[Measured | PagewireError]:
    """In order, each as soon as it and those before it are there."""

    def outcome(prompt: Prompt) -> Measured | PagewireError:
        try:
            started = time.monotonic()
            with connected.client.stream(prompt, timeout_s=args.timeout, **chosen) as stream:
                return measure(stream, started, _ignore)
        except PagewireError as error:
            return error

    with ThreadPoolExecutor(min(args.concurrency, len(prompts))) as pool:
        try:
            yield from pool.map(outcome, prompts)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            connected.client.close()  # ends what the threads wait for
            raise


def _print_outputs(measured: Measured) -> None:
    for index, output in enumerate(measured.result.outputs):
        if index:
            write("\n---\n")
        if output.message is not None:
            write(as_text(output.message))
        else:
            write(" ".join(map(str, output.token_ids)) if output.text is None else output.text)


def _summary(measured: Measured) -> str:
    result = measured.result
    parts = [f"{result.usage.completion_tokens} tokens ({result.finish_reason})"]
    if measured.ttft_s is not None:
        parts.append(f"the first after {measured.ttft_s * 1000:.0f} ms")
    if measured.decode_tokens_per_s is not None:
        parts.append(f"{measured.decode_tokens_per_s:.1f} tokens/s")
    return ", ".join(parts)


def _title(prompt: str | Prompt) -> str:
    text = " ".join(prompt.split()) if isinstance(prompt, str) else "a conversation or token ids"
    return text if len(text) <= _TITLE_CHARACTERS else f"{text[: _TITLE_CHARACTERS - 1]}…"


def _ignore(_delta: Delta) -> None:
    pass
