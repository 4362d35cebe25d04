"""Random admissions that use the controls of logits, and random logits for them."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch

from pagewire.wire.columns import pack
from pagewire.wire.logits import LogitControls, LogprobsRequest
from pagewire.wire.plan import Admit
from pagewire.wire.sampling import SamplingParams


def random_logits(generator: np.random.Generator, num_rows: int, vocab_size: int) -> torch.Tensor:
    """Rows from nearly flat to peaked, float32."""
    spread = generator.uniform(0.3, 4, (num_rows, 1))
    return torch.from_numpy((generator.standard_normal((num_rows, vocab_size)) * spread).astype(np.float32))


FILTERS: list[dict[str, float]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 1.5, "top_k": 20},
    {"top_p": 0.8},
    {"min_p": 0.05},
    {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.01},
]
KINDS = ["bias", "repetition", "frequency", "presence", "bad words", "banned", "allowed", "min tokens", "everything"]


@dataclass
class DrawnAdmits:
    """Random admissions that use one kind of control, or all."""

    generator: np.random.Generator
    vocab_size: int

    def draw(self, kind: str, slot: int = 0, *, ids: Sequence[int] = (), **sampling: float) -> Admit:
        """Of a short sequence in which ids repeat, so that penalties count and bad words are begun; or of `ids`."""
        generator, everything = self.generator, kind == "everything"
        tokens = np.asarray(ids or generator.integers(0, 30, int(generator.integers(1, 40))), np.int32)
        prompt_len = int(generator.integers(1, len(tokens) + 1))
        params = {"seed": int(generator.integers(0, 2**63)), **sampling}
        controls: dict[str, object] = {}
        if kind == "bias" or everything:
            ids = self._ids(50)
            controls["bias_ids"] = pack(ids)
            controls["bias_values"] = generator.uniform(-5, 5, len(ids)).astype("<f4").tobytes()
        if kind == "repetition" or everything:
            params["repetition_penalty"] = float(np.float32(generator.uniform(0.5, 2)))
        if kind == "frequency" or everything:
            params["frequency_penalty"] = float(np.float32(generator.uniform(-2, 2)))
        if kind == "presence" or everything:
            params["presence_penalty"] = float(np.float32(generator.uniform(-2, 2)))
        if kind == "bad words" or everything:
            begun = [pack([*tokens[-count:], int(generator.integers(0, self.vocab_size))]) for count in (1, 1, 2, 3)]
            others = [pack(self._ids(int(generator.integers(1, 4)))) for _ in range(4)]
            controls["bad_words"] = [word for word in begun + others if word]
        if kind == "banned" or everything:
            controls["banned_ids"] = pack(self._ids(60))
        if kind == "allowed" or everything:
            controls["allowed_ids"] = pack(self._ids(self.vocab_size // 2))
        if kind == "min tokens" or everything:
            controls["end_ids"] = pack(self._ids(3))
            controls["min_tokens"] = int(generator.integers(1, 40))
        return Admit(
            slot=slot,
            tokens=pack(tokens),
            prompt_len=prompt_len,
            num_cached=0,
            blocks=pack([slot]),
            sampling=SamplingParams(**params),  # type: ignore[arg-type]
            controls=LogitControls(**controls) if controls else None,  # type: ignore[arg-type]
        )

    def _ids(self, count: int) -> np.ndarray:
        return np.sort(self.generator.choice(self.vocab_size, count, replace=False)).astype(np.int32)

    def reported(self, admit: Admit) -> Admit:
        """The same, asking for log-probabilities of one kind or another, or for none."""
        generator = self.generator
        logprobs = LogprobsRequest(
            num_candidates=int(generator.integers(0, 21)),
            named_ids=pack(generator.integers(0, self.vocab_size, int(generator.integers(0, 4)))),
            is_processed=bool(generator.integers(2)),
        )
        return msgspec.structs.replace(
            admit,
            logprobs=logprobs if generator.integers(2) else None,
            prompt_logprobs=int(generator.integers(0, 21)) if not admit.num_cached and generator.integers(2) else None,
        )
