"""Log-probabilities on a terminal: a table of the prompt's tokens and of each output's, where any came."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from pagewire.client.cli.measure import has_logprobs
from pagewire.client.cli.printing import console
from pagewire.client.types import Candidate, Result, Token


def print_logprobs(result: Result) -> None:
    """Nothing where none were asked for."""
    parts = [("prompt", result.prompt_tokens)]
    parts += [(f"output {index}", output.tokens) for index, output in enumerate(result.outputs)]
    for title, tokens in parts:
        if any(has_logprobs(token) for token in tokens):
            console().print(_table(title, tokens))


def _table(title: str, tokens: Sequence[Token]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in ("id", "text", "log p", "likeliest", "named"):
        table.add_column(heading, justify="right" if heading in ("id", "log p") else "left")
    for token in tokens:
        table.add_row(
            "" if token.id is None else str(token.id),
            Text("" if token.text is None else repr(token.text)),
            "" if token.logprob is None else f"{token.logprob:.4f}",
            Text(_candidates(token.candidates)),
            Text(_candidates(token.named)),
        )
    return table


def _candidates(candidates: Sequence[Candidate]) -> str:
    return "  ".join(f"{each.bytes.decode(errors='replace')!r} {each.logprob:.3f}" for each in candidates)
