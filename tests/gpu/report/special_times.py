"""What one special row costs a step of 32: the device's time where a row has log-probabilities, changed logits, or
top-p, beside a step of plain rows. Random weights make logits so flat that top-p looks at a whole row."""

from __future__ import annotations

import msgspec
import numpy as np
from gpu.report.checks import Check
from gpu.report.direct import Change, DirectEngine
from gpu.report.results import PartRecord
from gpu.report.scale import Scale

from pagewire.client.bench.workload import NANO_VLLM_MAX_ID, Span, nano_vllm
from pagewire.scheduler_svc.models.random_shapes import RANDOM_SHAPES
from pagewire.wire.columns import pack
from pagewire.wire.logits import LogitControls, LogprobsRequest
from pagewire.wire.requests import Submit

_STREAMS = 32
_PROMPT, _OUTPUT = 8, 150
_ROUNDS = 3


def run(scale: Scale, engine: DirectEngine, record: PartRecord) -> None:
    """A row for each kind; of each, the median of the rounds."""
    vocab_size = RANDOM_SHAPES[scale.small_shape].vocab_size
    streams = min(_STREAMS, int(scale.settings["max_num_seqs"]))
    for name, change in _kinds(vocab_size).items():
        with record.attempt(name):
            times = []
            for index in range(_ROUNDS):
                max_id = min(NANO_VLLM_MAX_ID, vocab_size - 1)
                jobs = nano_vllm(streams, Span(_PROMPT, _PROMPT), Span(_OUTPUT, _OUTPUT), 7000 + index, max_id)
                found = engine.run(jobs, 0.8, change=change)
                times.append(1000 * found.busy_s / found.steps)
            record.add(Check(what=f"a step of {streams} rows, {name}", seen=float(np.median(times)), unit="ms"))


def _kinds(vocab_size: int) -> dict[str, Change]:
    ids = range(0, min(vocab_size - 5, 3000), 10)
    values = np.ones(len(ids), "<f4").tobytes()
    controls = LogitControls(bias_ids=pack(ids), bias_values=values, banned_ids=pack([each + 5 for each in ids]))
    penalties = {"presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1}

    def first(**asked: object) -> Change:
        def change(submit: Submit) -> Submit:
            if submit.handle:
                return submit
            sampling = msgspec.structs.replace(submit.sampling, **asked.get("sampling", {}))  # type: ignore[arg-type]
            return msgspec.structs.replace(submit, **{**asked, "sampling": sampling})

        return change

    return {
        "all plain": lambda submit: submit,
        "one with log-probabilities": first(logprobs=LogprobsRequest(20, pack(range(32)))),
        "one with bias, penalties and banned ids": first(controls=controls, sampling=penalties),
        "one with top-p": first(sampling={"top_p": 0.95}),
    }
