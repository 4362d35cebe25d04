"""Grammars as llguidance reads them: the model's tokenizer for it, and what following a grammar may cost.

The frontend's compiling process and the workers follow the same grammar within the same limits, so that what the one
accepts the others can follow from its first token on. Imported where llguidance is installed alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import llguidance


@dataclass(frozen=True, slots=True)
class GrammarTokenizer:
    """A model's tokenizer, in the library's form."""

    of_library: llguidance.LLTokenizer
    num_ids: int
    """As many bits has a mask; at least as many as there are logits."""

    @classmethod
    def read(cls, tokenizer_file: str | None, eos_token_ids: Sequence[int], vocab_size: int) -> "GrammarTokenizer":
        """Takes 0.2 to 1 s. Raises ValueError where the model has no tokenizer, no end-of-sequence token, or a
        tokenizer that the library does not take; OSError where its file cannot be read."""
        if tokenizer_file is None:
            raise ValueError("the model has no tokenizer")
        if not eos_token_ids:
            raise ValueError("the model has no end-of-sequence token")
        with open(tokenizer_file, encoding="utf-8") as file:
            definition = file.read()
        eos = list(eos_token_ids)
        tokenizer = llguidance.LLTokenizer(definition, eos_token=eos)
        num_ids = max(tokenizer.vocab_size, vocab_size)
        if num_ids > tokenizer.vocab_size:
            tokenizer = llguidance.LLTokenizer(definition, n_vocab=num_ids, eos_token=eos)
        return cls(tokenizer, num_ids)


def parser_limits() -> llguidance.LLParserLimits:
    """Of one grammar: about 20 ms to begin, 15 ms a token, and 30 MB."""
    return llguidance.LLParserLimits(
        max_items_in_row=2000,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=16_384,
        max_grammar_size=500_000,
        verbose_errors=False,
    )
