"""`pagewire generate`: answers prompts, one streamed to the terminal, several at once in order, or into a file
with which an interrupted run goes on."""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pagewire.client import requests
from pagewire.client.cli import batch, connection, inputs, parameters, tools
from pagewire.client.cli.answer import AnswerPrinter, as_text
from pagewire.client.cli.batch_file import BatchFile, NotWritten
from pagewire.client.cli.connection import Connected
from pagewire.client.cli.logprobs import print_logprobs
from pagewire.client.cli.measure import Measured, as_json, measure
from pagewire.client.cli.printing import complain, note, say, write, write_json
from pagewire.client.errors import InvalidRequest, PagewireError, Unavailable
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
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="write one JSON object per prompt to FILE, each as soon as it is there; its index says whose it is",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with --output's FILE: prompts that have an answer there are not asked again",
    )
    parameters.add_flags(parser)
    tools.add_flags(parser)
    connection.add_model_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when all prompts were answered, 1 when some were not."""
    if args.concurrency < 1:
        raise InvalidRequest(f"--concurrency is {args.concurrency}; it must be at least 1")
    if args.resume and not args.output:
        raise InvalidRequest("--resume needs --output, the file to go on with")
    gathered = inputs.gather(args)
    with connection.connect(args) as connected:
        chosen: Parameters = {**parameters.parameters(args, connected.model.name), "n": args.n}
        prompts = [inputs.dress(prompt, args, connected.model.capabilities) for prompt in gathered]
        if args.output:
            return _into_file(connected, prompts, chosen, args)
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
    found = batch.outcomes(connected, dict(enumerate(prompts)), chosen, args.timeout, args.concurrency)
    # On a terminal that shows the answers, they are the progress.
    with batch.progress(len(prompts), 0, is_shown=not sys.stdout.isatty()) as told:
        for index, outcome in batch.in_order(told(found)):
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
                write_json({"index": index, **_failure(outcome)})
            complain(f"prompt {index + 1}: {outcome}")
    return 1 if failed else 0


def _into_file(connected: Connected, prompts: Sequence[Prompt], chosen: Parameters, args: argparse.Namespace) -> int:
    """Where nothing answers any more, it ends: what is not asked then can be asked later."""
    known_by = [_digest(prompt, chosen, index) for index, prompt in enumerate(prompts)]
    tokens, failed, gone = 0, 0, ""
    began = time.monotonic()
    with BatchFile(Path(args.output), known_by, resumes=args.resume) as file:
        left = {index: prompt for index, prompt in enumerate(prompts) if index not in file.answered}
        answered = len(file.answered)
        found = batch.outcomes(connected, left, chosen, args.timeout, args.concurrency)
        with batch.progress(len(prompts), answered) as told:
            for index, outcome in told(found):
                if isinstance(outcome, Unavailable) and not outcome.reason:
                    gone = str(connection.unreachable(args.target, outcome))
                    found.close()
                    break
                try:
                    if isinstance(outcome, Measured):
                        file.write(index, as_json(outcome, connected.model.name))
                        answered += 1
                        tokens += outcome.result.usage.completion_tokens
                    else:
                        file.write(index, _failure(outcome))
                        failed += 1
                except NotWritten as error:
                    gone = str(error)
                    found.close()
                    break
    wall_s = time.monotonic() - began
    said = f"{answered} of {len(prompts)} prompts have answers in {args.output}"
    if left:
        said += f"; {tokens} tokens in {wall_s:.1f} s, {tokens / wall_s:,.0f} a second"
    say(f"pagewire: {said}\n")
    if gone:
        complain(f"{gone}; --resume goes on")
    elif failed:
        complain(f"{failed} prompts failed: the file says why, and --resume asks them again")
    return 1 if gone or failed else 0


def _digest(prompt: Prompt, chosen: Parameters, index: int) -> str:
    """What a prompt's request is known by. Raises InvalidRequest for one that cannot be sent."""
    try:
        message = requests.generation(prompt, chosen)
    except InvalidRequest as error:
        raise InvalidRequest(f"prompt {index + 1}: {error}", field=error.field) from error
    return hashlib.sha256(message.SerializeToString(deterministic=True)).hexdigest()[:32]


def _failure(error: PagewireError) -> dict[str, object]:
    field = error.field if isinstance(error, InvalidRequest) else ""
    return {"error": {"type": type(error).__name__, "message": str(error), "field": field}}


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
