"""The load of the faults: streams of every class through the client, and when their events came.

Knows a service's address and nothing of what happens to it.
"""

import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.smollm2 import cache_dir, smollm2_file

from pagewire.client import Client, PagewireError
from pagewire.client.prompts import Chat, ChatFormat, Message, Prompt, Tool
from pagewire.client.types import Delta, Result
from pagewire.scheduler_svc.models.gguf_file import read_gguf
from pagewire.scheduler_svc.progress import QuietProgress

LIMIT_S = 300.0
TEXTS = ["The capital of France is", "Once upon a time, in a village by the sea,", "Ein Rezept für Brot: 1. "]
PENALTIES = {"presence_penalty": 0.7, "frequency_penalty": 0.4, "repetition_penalty": 1.2}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "lines": {"type": "array", "items": {"type": "string", "maxLength": 30}, "minItems": 2, "maxItems": 6},
    },
    "required": ["name", "lines"],
}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
CHAT = Chat(
    [Message(role="user", content="Find it.")],
    tools=[Tool("find", parameters=SCHEMA), Tool("now")],
    tool_choice="required",
    format=ChatFormat(reasoning="none", tool_calls="qwen3"),
)
SEEDED: Mapping[str, Any] = {"temperature": 1.1}
CLASSES: dict[str, Mapping[str, Any]] = {
    "greedy": {"temperature": 0.0, "ignore_eos": True},
    "seeded": {**SEEDED, "ignore_eos": True},
    "penalized": {**SEEDED, **PENALTIES, "logit_bias": {284: 4.0, 253: -100.0}, "banned_token_ids": [28, 198]},
    "n": {**SEEDED, "n": 3, "ignore_eos": True},
    "stop strings": {**SEEDED, "stop": [" the", "\n\n"], "min_tokens": 8},
    "constrained": {**SEEDED, **PENALTIES, "json_schema": SCHEMA},
    "tools": {**SEEDED, "prompt": CHAT},
    "log-probabilities": {**SEEDED, "logprobs": True, "num_candidates": 5, "prompt_logprobs": True, "min_p": 0.01},
}
"""Of each as many as of any other."""


@dataclass(frozen=True)
class Asked:
    """One stream, by its class; two of one class differ in text and seed."""

    kind: str
    number: int
    max_tokens: int

    def arguments(self) -> tuple[Prompt, dict[str, Any]]:
        given = dict(CLASSES[self.kind])
        prompt = given.pop("prompt", TEXTS[self.number % len(TEXTS)])
        return prompt, {**given, "seed": 1000 + self.number, "max_tokens": self.max_tokens}


def requests(kinds: Sequence[str], count: int, max_tokens: int) -> list[Asked]:
    return [Asked(kinds[index % len(kinds)], index, max_tokens) for index in range(count)]


Answer = tuple[object, ...]


def answer(result: Result) -> Answer:
    """All that a client has in the end, but for what the same request may cost another time."""
    return (result.seed, result.prompt_tokens, result.outputs)


@dataclass
class Read:
    """What came of streams that were read at once."""

    answers: dict[Asked, Answer] = field(default_factory=dict)
    errors: dict[Asked, str] = field(default_factory=dict)
    pauses_s: list[float] = field(default_factory=list)
    """The longest time between two events of each stream."""

    @property
    def longest_s(self) -> float:
        return longest_of(self.pauses_s)


def longest_of(pauses_s: Sequence[float]) -> float:
    return max(pauses_s, default=0.0)


def p99_of(pauses_s: Sequence[float]) -> float:
    if len(pauses_s) < 2:
        return longest_of(pauses_s)
    return statistics.quantiles(pauses_s, n=100, method="inclusive")[98]


class Course:
    """How far all streams are together, for faults that come somewhere in between."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._tokens = 0
        self._begun = 0
        self._is_over = False

    @property
    def tokens(self) -> int:
        return self._tokens

    def advance(self, tokens: int) -> None:
        with self._condition:
            self._tokens += tokens
            self._condition.notify_all()

    def begin(self) -> None:
        """A stream was taken."""
        with self._condition:
            self._begun += 1
            self._condition.notify_all()

    def end(self) -> None:
        with self._condition:
            self._is_over = True
            self._condition.notify_all()

    def wait_for(self, tokens: int) -> bool:
        """Until so many have come; false where all ended before."""
        with self._condition:
            self._condition.wait_for(lambda: self._tokens >= tokens or self._is_over, LIMIT_S)
            return self._tokens >= tokens

    def wait_until_begun(self, streams: int) -> None:
        """Until so many were taken."""
        with self._condition:
            self._condition.wait_for(lambda: self._begun >= streams or self._is_over, LIMIT_S)


def read_all(
    address: str,
    asked: Sequence[Asked],
    during: Callable[[Course], None] = lambda course: None,
    interval_s: float = 0.0,
) -> Read:
    """All streams, each begun so long after the one before, by the client and its usual patience; `during` runs beside
    them."""
    read, course = Read(), Course()
    lock = threading.Lock()

    def one(client: Client, each: Asked) -> None:
        prompt, parameters = each.arguments()
        came_s = []
        try:
            with client.stream(prompt, timeout_s=LIMIT_S, **parameters) as stream:
                for event in stream:
                    if not came_s:
                        course.begin()
                    came_s.append(time.monotonic())
                    if isinstance(event, Delta):
                        course.advance(len(event.tokens))
                found = answer(stream.result())
        except PagewireError as error:
            with lock:
                read.errors[each] = f"{type(error).__name__}: {error}"
            return
        with lock:
            read.answers[each] = found
            read.pauses_s.append(max((b - a for a, b in itertools.pairwise(came_s)), default=0.0))

    with Client(address) as client, ThreadPoolExecutor(len(asked) + 1) as pool:
        beside = pool.submit(during, course)
        streams = []
        for each in asked:
            streams.append(pool.submit(one, client, each))
            time.sleep(interval_s)
        for stream in streams:
            stream.result()
        course.end()
        beside.result()
    return read


@contextmanager
def small_qwen3() -> Iterator[Path]:
    """A checkpoint of Qwen3's shape in small, with random weights and SmolLM2's tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = read_gguf(smollm2_file(), "smollm2", cache_dir(), QuietProgress()).tokenizer_file
    assert tokenizer is not None
    config = Qwen3Config(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        vocab_size=49_152,
        max_position_embeddings=1024,
        initializer_range=0.1,
        eos_token_id=0,
        bos_token_id=None,
        dtype=torch.float32,
    )
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        Qwen3ForCausalLM(config).save_pretrained(folder)
        Path(folder, "tokenizer.json").write_bytes(Path(tokenizer).read_bytes())
        Path(folder, "chat_template.jinja").write_text(TEMPLATE)
        yield Path(folder)
