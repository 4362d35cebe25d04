"""What a model's step cannot be faster than on a card, from bytes and operations alone.

A decode step reads every weight of its linears once and every sequence's keys and values once; a prompt's tokens cost
their multiplications. What else is read or computed is left out: it is what a good implementation makes small. Pure
arithmetic: rates come from `gpu.report.card`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pagewire.wire.model import DecoderConfig

BF16_BYTES = 2
COPIED_BYTES = 2
"""A byte that is copied is read and written; a card's rate counts both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a card was measured to do."""

    bytes_per_s: float
    """Read and written, in a copy."""
    flops_per_s: float
    """Of a large product of bf16 matrices."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and what is generated for it, in tokens."""

    num_prompt: int
    num_output: int


class Floors:
    """Least times of one model, in bf16, on one card."""

    def __init__(self, config: DecoderConfig, rates: Rates) -> None:
        c = config
        heads = (2 * c.num_heads + 2 * c.num_kv_heads) * c.head_dim
        self._layer_weights = c.num_layers * c.hidden_size * (heads + 3 * c.intermediate_size)
        self._head_weights = c.vocab_size * c.hidden_size
        self._attention_flops = 4 * c.num_layers * c.num_heads * c.head_dim
        self._kv_bytes = 2 * c.num_layers * c.num_kv_heads * c.head_dim * BF16_BYTES
        self._rates = rates

    @property
    def step_weight_bytes(self) -> int:
        """Weights that every step reads: all linears and the head; of an embedding's table only rows are looked up."""
        return (self._layer_weights + self._head_weights) * BF16_BYTES

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers."""
        return self._kv_bytes

    def decode_step_s(self, num_seqs: float, sum_of_contexts: float) -> float:
        """One token for each of so many sequences, whose contexts are so long together."""
        num_bytes = self.step_weight_bytes + sum_of_contexts * self._kv_bytes
        flops = 2 * num_seqs * (self._layer_weights + self._head_weights) + self._attention_flops * sum_of_contexts
        return max(num_bytes / self._rates.bytes_per_s, flops / self._rates.flops_per_s)

    def decode_rate(self, num_seqs: int, context: float) -> float:
        """Tokens a second of so many streams at one context."""
        return num_seqs / self.decode_step_s(num_seqs, num_seqs * context)

    def prefill_s(self, num_tokens: int) -> float:
        """A prompt of so many tokens; of its last one the head computes a token."""
        flops = 2 * num_tokens * self._layer_weights + 2 * self._head_weights
        return (flops + self._attention_flops * num_tokens * (num_tokens + 1) / 2) / self._rates.flops_per_s

    def prefill_rate(self, num_tokens: int) -> float:
        """Tokens a second of prompts of so many tokens each."""
        return num_tokens / self.prefill_s(num_tokens)

    def batch_s(self, requests: Iterable[Request]) -> float:
        """All requests at once: their prompts, and then steps in which every sequence that has not ended decodes."""
        found = list(requests)
        total_s = sum(self.prefill_s(request.num_prompt) for request in found)
        for step in range(1, max((request.num_output for request in found), default=0)):
            running = [request for request in found if request.num_output > step]
            total_s += self.decode_step_s(len(running), sum(request.num_prompt + step for request in running))
        return total_s

    def batch_rate(self, requests: Iterable[Request]) -> float:
        """Output tokens a second of the same."""
        found = list(requests)
        return sum(request.num_output for request in found) / self.batch_s(found)
