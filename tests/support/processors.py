"""What transformers' own classes make of a row's logits: the judge of every stage of logit processors.

Frequency and presence penalties, which transformers has not, are OpenAI's formula: logit - count · frequency -
(count > 0) · presence, over what was generated.
"""

from collections import Counter

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

from pagewire.wire.columns import ID_BYTES, unpack, unpack_floats
from pagewire.wire.logits import LogitControls
from pagewire.wire.plan import NO_TOKEN, Admit
from pagewire.wire.sampling import SamplingParams
from pagewire.worker.sampling.uniform import uniform


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


def judged_token(logits_V: torch.Tensor, admit: Admit, token: int) -> bool:
    """Raises AssertionError for a token that is not drawn as transformers' classes and the inverse of what they leave
    say, or for one where nothing is left. False where the draw fell so close to an edge that either side may be."""
    scores = judged(logits_V, admit)
    if not scores.isfinite().any():
        assert token == NO_TOKEN
        return True
    scores = warpers(admit.sampling)(torch.zeros(1, 1, dtype=torch.int64), scores[None])[0]
    assert scores[token] > -torch.inf, f"{token} was drawn of {admit}"
    running = scores.double().softmax(0).cumsum(0).numpy()
    position = np.array([len(admit.tokens) // ID_BYTES])
    point = float(uniform(np.array([admit.sampling.seed], np.uint64), position)[0])
    if np.abs(running - point).min() < 1e-5:
        return False
    assert token == (running > point).argmax()
    return True


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
