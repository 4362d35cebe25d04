"""Random traffic against a running service, and what each of its answers must have been.

A request is drawn from a seed: its prompt has 1 to 40 ids and often begins as another's, it asks for several outputs, a
way to sample, an end; some are cancelled in the middle. `run_traffic` keeps as many under way as it is told.

`Judge` scores an answer with transformers' model: one forward pass over the prompt and the output, without batch, cache
or chunks, gives the logits that each token must have been drawn from. What two ways to add up fp32 numbers can make of
a tie is told from a fault by drawing again from logits that differ by as much.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import llguidance
import numpy as np
import torch
from support.processors import judged
from support.sampling_rows import sampling_rows
from support.service import generation
from transformers import PreTrainedModel

from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2, inference_pb2_grpc
from pagewire.wire.columns import pack
from pagewire.wire.grammar import GrammarTokenizer
from pagewire.wire.logits import LogitControls
from pagewire.wire.plan import Admit
from pagewire.wire.sampling import SamplingParams
from pagewire.worker.sampling.sampler import Sampler

LIMIT_S = 280.0
MAX_PROMPT = 40
_NUM_TEXTS = 5
_ROUNDING = 2e-3
"""Of logits: 20 times the largest difference seen between the kernels and transformers' eager attention."""
_LOGPROB_ERROR = 2 * _ROUNDING
_TRIALS = 256


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request."""

    prompt: tuple[int, ...]
    n: int = 1
    seed: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_tokens: int
    stop_token_ids: tuple[int, ...] = ()
    priority: int = 0
    cancel_after: int | None = None
    """Tokens, over all outputs, after which the client goes away."""
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    banned_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    num_candidates: int | None = None
    """With log-probabilities; none where these are not asked for."""
    is_processed: bool = False
    scores_prompt: bool = False
    regex: str = ""
    """What the output is held to, where it is; it may end there."""

    def message(self) -> inference_pb2.StreamGenerateRequest:
        return inference_pb2.StreamGenerateRequest(
            generation=generation(
                list(self.prompt),
                n=self.n,
                priority=self.priority,
                sampling={
                    "temperature": self.temperature,
                    "top_k": self.top_k,
                    "top_p": self.top_p,
                    "min_p": self.min_p,
                    "seed": self.seed,
                    "repetition_penalty": self.repetition_penalty,
                    "frequency_penalty": self.frequency_penalty,
                    "presence_penalty": self.presence_penalty,
                    "logit_bias": dict(self.logit_bias),
                    "allowed_token_ids": self.allowed_token_ids,
                    "banned_token_ids": self.banned_token_ids,
                },
                stopping={
                    "max_tokens": self.max_tokens,
                    "min_tokens": self.min_tokens,
                    "ignore_eos": not self.regex,
                    "stop_token_ids": self.stop_token_ids,
                },
                constraint=pb.Constraint(regex=self.regex) if self.regex else None,
                output=pb.Output(
                    logprobs=self.num_candidates is not None,
                    num_candidates=self.num_candidates or 0,
                    processed_logprobs=self.is_processed,
                    prompt_logprobs=self.scores_prompt,
                ),
            )
        )

    def admit(self, index: int, num_generated: int, output: list[int]) -> Admit:
        """The sequence of one output, as it is admitted with so many of its tokens."""
        bias = dict(sorted(self.logit_bias))
        return Admit(
            slot=0,
            tokens=pack([*self.prompt, *output[:num_generated]]),
            prompt_len=len(self.prompt),
            num_cached=0,
            blocks=b"",
            sampling=SamplingParams(
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                min_p=self.min_p,
                seed=(self.seed + index) % 2**64,
                repetition_penalty=self.repetition_penalty,
                frequency_penalty=self.frequency_penalty,
                presence_penalty=self.presence_penalty,
            ),
            controls=LogitControls(
                bias_ids=pack(list(bias)),
                bias_values=np.array(list(bias.values()), "<f4").tobytes(),
                allowed_ids=pack(sorted(self.allowed_token_ids)),
                banned_ids=pack(sorted(self.banned_token_ids)),
                min_tokens=self.min_tokens if self.stop_token_ids else 0,
                end_ids=pack(sorted(self.stop_token_ids)),
            ),
        )


@dataclass(kw_only=True)
class Answer:
    """What came back."""

    asked: Asked
    outputs: list[list[int]]
    ends: list["pb.Finished | None"]
    events: Counter[str] = field(default_factory=Counter)
    logprobs: list[list[float]]
    """Of each output's tokens, where they were asked for."""
    prompt_tokens: list[pb.Token] = field(default_factory=list)
    is_cancelled: bool = False
    cached_tokens: int = 0


_REGEXES = (
    "[a-f]{1,40}",
    "(ab|cd|x[0-9]{2}|e){1,12}",
    "[a-z]{0,3}[0-9]{2}(bad|face)*",
    r'\{"a":\[[0-9]{1,3}(,[0-9]{1,3})*\]\}',
)


def draw_requests(draw: random.Random, vocab_size: int, max_n: int, max_model_len: int) -> Iterator[Asked]:
    """Without end. Prompts are beginnings of a few texts, whole or with ids of their own behind, so that many share
    blocks and some are there already in full. One in five is held to a language."""
    texts = [[draw.randrange(vocab_size) for _ in range(MAX_PROMPT)] for _ in range(_NUM_TEXTS)]
    while True:
        # As long as others are many, often: a step of k tokens of one prompt behind one of k sequences that end in it.
        length = draw.choice((max_n, draw.randrange(1, MAX_PROMPT + 1), draw.randrange(1, MAX_PROMPT + 1)))
        num_shared = draw.choice((0, length, draw.randrange(length + 1)))
        own = [draw.randrange(vocab_size) for _ in range(length - num_shared)]
        n = draw.choice((1, draw.randrange(1, max_n + 1), max_n, max_n))
        max_tokens = draw.randrange(1, min(25, max_model_len - length + 1))
        asked = Asked(
            prompt=(*draw.choice(texts)[:num_shared], *own),
            n=n,
            seed=draw.randrange(2**64),
            temperature=draw.choice((0.0, 0.5, 1.0)),
            top_k=draw.choice((0, 0, 1, 7)),
            top_p=draw.choice((1.0, 1.0, 0.8)),
            min_p=draw.choice((0.0, 0.0, 0.1, 0.7)),
            max_tokens=max_tokens,
            stop_token_ids=tuple(draw.sample(range(vocab_size), 8)) if draw.random() < 0.3 else (),
            priority=draw.choice((0, 0, 0, 5)),
            cancel_after=draw.randrange(n * max_tokens) if draw.random() < 0.15 else None,
            **(_draw_controls(draw, vocab_size, max_tokens) if draw.random() < 0.5 else {}),
        )
        yield _draw_language(draw, asked) if draw.random() < 0.2 else asked


def _draw_language(draw: random.Random, asked: Asked) -> Asked:
    """Without what may leave nothing of it."""
    unlimited: dict[str, Any] = {"allowed_token_ids": (), "banned_token_ids": (), "min_tokens": 0}
    return replace(asked, regex=draw.choice(_REGEXES), **unlimited)


def _draw_controls(draw: random.Random, vocab_size: int, max_tokens: int) -> dict[str, Any]:
    """Each of them in one of three; what they leave is never nothing."""

    def one_of(value: Any, otherwise: Any) -> Any:
        return value if draw.random() < 1 / 3 else otherwise

    banned = tuple(draw.sample(range(vocab_size // 2), 20))
    allowed = tuple(draw.sample(range(vocab_size // 2, vocab_size), 60))
    return {
        "repetition_penalty": one_of(draw.choice((0.5, 1.25, 2.0)), 1.0),
        "frequency_penalty": one_of(draw.choice((-0.5, 0.25, 2.0)), 0.0),
        "presence_penalty": one_of(draw.choice((-0.5, 0.25, 2.0)), 0.0),
        "logit_bias": one_of(tuple((token, draw.uniform(-4, 4)) for token in draw.sample(range(vocab_size), 9)), ()),
        "allowed_token_ids": one_of(allowed, ()),
        "banned_token_ids": one_of(banned, ()),
        "min_tokens": one_of(draw.randrange(max_tokens + 1), 0),
        "num_candidates": one_of(draw.choice((0, 3, 20)), None),
        "is_processed": one_of(True, False),
        "scores_prompt": one_of(True, False),
    }


def run_traffic(
    address: str, requests: Iterator[Asked], draw: random.Random, num_under_way: int, goes_on: Callable[[], bool]
) -> list[Answer]:
    """As many requests at once, each followed by the next, for as long as `goes_on` says. Now and then all must have
    ended before the next burst, because a service that has just become idle is in a state of its own."""

    async def run() -> list[Answer]:
        answers: list[Answer] = []
        async with grpc.aio.insecure_channel(address) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            while goes_on():
                under_way: set[asyncio.Task[Answer]] = set()
                for _ in range(draw.choice((1, 3, 10, 60))):
                    if len(under_way) >= num_under_way:
                        done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                        answers += [task.result() for task in done]
                    under_way.add(asyncio.create_task(ask(stub, next(requests))))
                    if draw.random() < 0.3:  # the next one comes in the middle of a step
                        await asyncio.sleep(draw.random() * 0.01)
                answers += await asyncio.gather(*under_way)
        return answers

    return asyncio.run(run())


async def ask(stub: inference_pb2_grpc.InferenceServiceStub, asked: Asked) -> Answer:
    """One request to its end, or until its client goes away."""
    answer = Answer(
        asked=asked,
        outputs=[[] for _ in range(asked.n)],
        ends=[None] * asked.n,
        logprobs=[[] for _ in range(asked.n)],
    )
    call = stub.StreamGenerate(asked.message(), timeout=LIMIT_S)
    num_left = asked.cancel_after
    async for event in call:
        kind = event.WhichOneof("event")
        answer.events[kind] += 1
        match kind:
            case "started":
                answer.cached_tokens = event.started.cached_tokens
            case "delta":
                answer.outputs[event.delta.output] += [token.id for token in event.delta.tokens]
                answer.logprobs[event.delta.output] += [
                    token.logprob for token in event.delta.tokens if token.HasField("logprob")
                ]
                count = asked.num_candidates or 0
                assert all(len(t.candidates) == count or asked.is_processed for t in event.delta.tokens)
            case "prompt_tokens":
                assert not any(answer.outputs), "tokens came before the prompt's"
                answer.prompt_tokens += event.prompt_tokens.tokens
            case "finished":
                assert answer.ends[event.finished.output] is None, "an output ended twice"
                answer.ends[event.finished.output] = event.finished
        if num_left is not None and sum(map(len, answer.outputs)) > num_left:
            call.cancel()
            answer.is_cancelled = True
            break
    return answer


class Judge:
    """Says what is wrong with an answer."""

    def __init__(self, model: PreTrainedModel, tokenizer: GrammarTokenizer) -> None:
        """`model` is transformers', in fp32; `tokenizer` the one that languages are written in."""
        self._model = model
        self._tokenizer = tokenizer
        self._vocab_size = model.config.vocab_size
        self._sampler = Sampler(self._vocab_size)
        self.num_tokens = 0
        self.num_ties = 0
        """Tokens that only rounding explains."""

    def complaints(self, answer: Answer) -> list[str]:
        """Nothing where it is what its request alone would have got."""
        asked, found = answer.asked, list(self._of_prompt(answer))
        for index, (output, end) in enumerate(zip(answer.outputs, answer.ends, strict=True)):
            what_is_wrong = self._of_output(asked, index, output, answer.logprobs[index])
            found += [f"output {index} of {asked}: {what}" for what in what_is_wrong]
            if answer.is_cancelled:
                continue
            if asked.regex and end is not None and end.reason == pb.FINISH_REASON_EOS:
                continue  # what came before let it, or it would not have been drawn
            stopped = next((i for i, token in enumerate(output) if token in asked.stop_token_ids), None)
            if end is None:
                found.append(f"output {index} of {asked} has no end")
            elif end.reason == pb.FINISH_REASON_LENGTH:
                if len(output) != asked.max_tokens or stopped not in (None, len(output) - 1):
                    found.append(f"output {index} of {asked} ended by length with {output}")
            elif end.reason != pb.FINISH_REASON_STOP_TOKEN or stopped != len(output) - 1:
                found.append(f"output {index} of {asked} ended by {end.reason} with {output}")
        if not answer.is_cancelled and (answer.events["started"], answer.events["usage"]) != (1, 1):
            found.append(f"{asked} had the events {dict(answer.events)}")
        return found

    def _of_prompt(self, answer: Answer) -> Iterator[str]:
        asked, tokens = answer.asked, answer.prompt_tokens
        if not asked.scores_prompt or answer.is_cancelled:
            return
        if [token.id for token in tokens] != list(asked.prompt) or tokens[0].HasField("logprob"):
            yield f"the prompt of {asked} came back as {[token.id for token in tokens]}"
        expected = self._logits(asked.prompt)[:-1].log_softmax(1)
        for position, token in enumerate(tokens[1:], start=1):
            if abs(token.logprob - float(expected[position - 1, token.id])) > _LOGPROB_ERROR:
                yield f"position {position} of the prompt of {asked} has {token.logprob}"

    def _logits(self, ids: Sequence[int]) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = self._model(torch.tensor([list(ids)]), use_cache=False).logits[0].float()
        return logits

    def _of_output(self, asked: Asked, index: int, output: list[int], logprobs: list[float]) -> Iterator[str]:
        if not output:
            return
        raw = self._logits([*asked.prompt, *output])[len(asked.prompt) - 1 : -1].contiguous()
        logits = torch.stack([judged(raw[i], asked.admit(index, i, output)) for i in range(len(output))])
        if asked.regex:
            logits = torch.where(self._may_come(asked.regex, output), logits, -torch.inf)
        positions = np.arange(len(asked.prompt), len(asked.prompt) + len(output), dtype=np.int32)
        if asked.num_candidates is not None:
            scored = (logits if asked.is_processed else raw).log_softmax(1)
            wanted = scored[torch.arange(len(output)), torch.tensor(output)].tolist()
            if len(logprobs) != len(output) or max(map(abs, np.subtract(wanted, logprobs))) > _LOGPROB_ERROR:
                yield f"log-probabilities are {logprobs}, not {wanted}"
        expected = self._draw(asked, index, logits, positions)
        self.num_tokens += len(output)
        for i in np.flatnonzero(expected != output).tolist():
            if output[i] in self._close_draws(asked, index, logits[i], int(positions[i])):
                self.num_ties += 1
            else:
                yield f"token {i} of {output} is {output[i]}, not {expected[i]}"
                return

    def _may_come(self, regex: str, output: list[int]) -> torch.Tensor:
        """[tokens, vocabulary]: what the language lets stand at each place of an output."""
        grammar = llguidance.LLMatcher.grammar_from_regex(regex)
        matcher = llguidance.LLMatcher(self._tokenizer.of_library, grammar)
        rows = []
        for token in output:
            bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
            rows.append(torch.from_numpy(bits[: self._vocab_size] != 0))
            matcher.consume_token(token)
        return torch.stack(rows)

    def _draw(self, asked: Asked, index: int, logits: torch.Tensor, positions: np.ndarray) -> np.ndarray:
        count = len(positions)
        return self._sampler.sample(
            logits,
            sampling_rows(
                count,
                temperature=asked.temperature,
                top_k=asked.top_k,
                top_p=asked.top_p,
                min_p=asked.min_p,
                seed=(asked.seed + index) % 2**64,
            ),
            positions,
        )

    def _close_draws(self, asked: Asked, index: int, logits: torch.Tensor, position: int) -> set[int]:
        """What is drawn from logits that are as near to these as rounding leaves them."""
        noise = (torch.rand(_TRIALS, self._vocab_size, generator=torch.Generator().manual_seed(0)) * 2 - 1) * _ROUNDING
        positions = np.full(_TRIALS, position, np.int32)
        return set(self._draw(asked, index, logits + noise, positions).tolist())


def for_seconds(seconds: float) -> Callable[[], bool]:
    """A `goes_on` that ends after that time."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() < end
