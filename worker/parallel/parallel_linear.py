"""A decoder whose linears and embedding are one rank's part of a model: what each needs of the others, added outside.

    x = Σ embedding_r[ids]                       every rank looks up the ids it holds, zeros for the rest
    layer:  x += Σ o_r( attention_r( qkv_r(x) ))     heads are divided; two sums per layer
            x += Σ down_r( silu(gate_r) · up_r )
    logits = [head_0(x), head_1(x), …]           gathered, so that every rank samples the same

Sums are taken in the model's dtype, in which each rank's part was rounded once already.
"""

from dataclasses import replace
from typing import ClassVar

import torch

from pagewire.worker.model.decoder import Decoder, DecoderWeights
from pagewire.worker.model.layers import Embedding, Linear
from pagewire.worker.parallel.collectives import Collectives
from pagewire.worker.parallel.shard import VocabularyPart


class SummedLinear:
    """A row-parallel linear: the sum of all ranks' outputs."""

    name: ClassVar[str] = "summed"

    def __init__(self, local: Linear, collectives: Collectives) -> None:
        self.num_bytes = local.num_bytes
        self._local = local
        self._collectives = collectives

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y = self._local(x)
        self._collectives.all_reduce(y)
        return y


class GatheredLinear:
    """A column-parallel linear whose outputs every rank needs: the head."""

    name: ClassVar[str] = "gathered"

    def __init__(self, local: Linear, collectives: Collectives, num_outputs: int) -> None:
        """Outputs past `num_outputs` are the padding of the last ranks' parts."""
        self.num_bytes = local.num_bytes
        self._local = local
        self._collectives = collectives
        self._num_outputs = num_outputs

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y_NSV = self._collectives.all_gather(self._local(x))
        # One row's logits stand together, as samplers read them; for one row that is no copy.
        return y_NSV.transpose(0, 1).reshape(x.shape[0], -1)[:, : self._num_outputs]


class SummedEmbedding:
    """Rows of a table that is divided by ids. `local` is the embedding of the rank's part."""

    def __init__(self, local: Embedding, part: VocabularyPart, collectives: Collectives) -> None:
        self.num_bytes = local.num_bytes
        self._local = local
        self._start, self._num_ids = part.start, part.stop - part.start
        self._collectives = collectives

    def __call__(self, ids_T: torch.Tensor) -> torch.Tensor:
        ids_T = ids_T - self._start
        is_ours_T = (ids_T >= 0) & (ids_T < self._num_ids)
        rows_TE = self._local(ids_T * is_ours_T) * is_ours_T[:, None]
        self._collectives.all_reduce(rows_TE)
        return rows_TE


def parallel_decoder(local: Decoder, part: VocabularyPart, collectives: Collectives) -> Decoder:
    """The whole model's decoder on one rank. `local` was built from the rank's part of the weights, with the rank's
    numbers of heads and the whole vocabulary's size; `part` is what its embedding and head hold."""
    w = local.weights
    weights = DecoderWeights(
        embedding=SummedEmbedding(w.embedding, part, collectives),
        layers=[
            replace(layer, o=SummedLinear(layer.o, collectives), down=SummedLinear(layer.down, collectives))
            for layer in w.layers
        ],
        final_norm=w.final_norm,
        head=GatheredLinear(w.head, collectives, local.config.vocab_size),
    )
    return Decoder(local.config, weights, local.rope, local.attention, local.ops)
