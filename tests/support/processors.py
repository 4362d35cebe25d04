"""What transformers' own classes make of a row's logits: the judge of every stage of logit processors.

Frequency and presence penalties, which transformers has not, are OpenAI's formula: logit - count · frequency -
(count > 0) · presence, over what was generated.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pagewire.wire.columns import pack, unpack, unpack_floats
from pagewire.wire.logits import LogitControls
from pagewire.wire.plan import Admit
from pagewire.wire.sampling import SamplingParams


class _OpenAiPenalties(LogitsProcessor):
    def __init__(self, prompt_len: int, frequency: float, presence: float) -> None:
        self._prompt_len, self._frequency, self._presence = prompt_len, frequency, presence

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for token, count in Counter(input_ids[0, self._prompt_len :].tolist()).items():
            penalty = torch.tensor(self._frequency) * count
            scores[0, token] = scores[0, token] - penalty - torch.tensor(self._presence)
        return scores


def processors(admit: Admit) -> LogitsProcessorList:
    """In the documented order."""
    sampling, controls = admit.sampling, admit.controls or LogitControls()
    found = LogitsProcessorList()
    if controls.bias_ids:
        values = unpack_floats(controls.bias_values).tolist()
        bias = {(token,): value for token, value in zip(unpack(controls.bias_ids).tolist(), values, strict=True)}
        found.append(SequenceBiasLogitsProcessor(bias))
    if sampling.repetition_penalty != 1:
        found.append(RepetitionPenaltyLogitsProcessor(float(np.float32(sampling.repetition_penalty))))
    if sampling.frequency_penalty or sampling.presence_penalty:
        found.append(_OpenAiPenalties(admit.prompt_len, sampling.frequency_penalty, sampling.presence_penalty))
    if controls.bad_words:
        words = [unpack(word).tolist() for word in controls.bad_words]
        found.append(NoBadWordsLogitsProcessor(words, eos_token_id=None))
    if controls.min_tokens:
        ends = unpack(controls.end_ids).tolist()
        found.append(MinNewTokensLengthLogitsProcessor(admit.prompt_len, controls.min_tokens, ends))
    if controls.banned_ids:
        found.append(SuppressTokensLogitsProcessor(unpack(controls.banned_ids).tolist()))
    if controls.allowed_ids:
        allowed = unpack(controls.allowed_ids).tolist()
        found.append(PrefixConstrainedLogitsProcessor(lambda batch, ids: allowed, num_beams=1))
    return found


def warpers(sampling: SamplingParams) -> LogitsProcessorList:
    """What a sampler does to logits, in transformers' order."""
    found = LogitsProcessorList([TemperatureLogitsWarper(float(np.float32(sampling.temperature)))])
    if sampling.top_k:
        found.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        found.append(TopPLogitsWarper(float(np.float32(sampling.top_p))))
    if sampling.min_p:
        found.append(MinPLogitsWarper(float(np.float32(sampling.min_p))))
    return found


def judged(logits_V: torch.Tensor, admit: Admit) -> torch.Tensor:
    """The row after the processors, float32 [V]. The sequence is what the admission has."""
    ids = torch.from_numpy(unpack(admit.tokens).astype(np.int64))[None]
    scores: torch.Tensor = processors(admit)(ids, logits_V[None].clone())
    return scores[0]


KINDS = ["bias", "repetition", "frequency", "presence", "bad words", "banned", "allowed", "min tokens", "everything"]


@dataclass
class DrawnAdmits:
    """Random admissions that use one kind of control, or all."""

    generator: np.random.Generator
    vocab_size: int

    def draw(self, kind: str, slot: int = 0, **sampling: float) -> Admit:
        """Of a short sequence in which ids repeat, so that penalties count and bad words are begun."""
        generator, everything = self.generator, kind == "everything"
        num_ids = int(generator.integers(1, 40))
        tokens = generator.integers(0, 30, num_ids).astype(np.int32)
        prompt_len = int(generator.integers(1, num_ids + 1))
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
