"""A dense decoder: one definition for Qwen3, Qwen2, Llama and Mistral, which differ in flags of `DecoderConfig`.

    x = embedding[ids]
    layer:  x += o( attention( rope( norm( qkv( rms(x) )))))
            x += down( silu(gate) · up )      gate, up = gate_up( rms(x) )
    logits = head( rms(x) )

Of rows that do not sample, nothing is needed behind the last layer's keys and values, so the rest of that layer is
computed for the others alone.

The decoder is a plain object that holds plain tensors and linears: it has no parameters to register, no autograd and
no knowledge of files, packing or ranks. Tensor parallelism replaces a layer's linears and the head from outside and
builds the decoder with the local numbers of heads. Head numbers in `forward` therefore come from the config it was
given. Nothing in `forward` reads a tensor back to the host, so that it can be captured in a CUDA graph.

Shapes as in `pagewire.worker.attention.base`; F is the MLP's inner size, A = H · D.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pagewire.wire.model import DecoderConfig
from pagewire.worker.attention.base import AttentionBackend, AttentionStep, Batch
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.model.layers import Embedding, Linear, RmsNorm
from pagewire.worker.model.ops import DecoderOps, StepOps
from pagewire.worker.model.rope import RotaryEmbedding


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderLayer:
    """One layer's weights."""

    attention_norm: RmsNorm
    qkv: Linear
    """[E] → [(H + K + K) · D]: q heads, k heads, v heads."""
    qk_norm: RmsNorm | None
    """Over [H + K, D]: the q norm's weight once per q head, then the k norm's once per k head, so that both are one."""
    o: Linear
    mlp_norm: RmsNorm
    gate_up: Linear
    """[E] → [2F]: gate, then up."""
    down: Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderWeights:
    """Everything that comes from files."""

    embedding: Embedding
    layers: Sequence[DecoderLayer]
    final_norm: RmsNorm
    head: Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderStep:
    """A step that has begun; valid until the next one begins."""

    ops: StepOps
    attention: AttentionStep
    h_TE: torch.Tensor
    """What goes into the first layer's qkv."""
    num_samples: int


class Decoder:
    """The model, ready to run."""

    def __init__(
        self,
        config: DecoderConfig,
        weights: DecoderWeights,
        rope: RotaryEmbedding,
        attention: AttentionBackend,
        ops: DecoderOps,
    ) -> None:
        self.config = config
        self.weights = weights
        self.rope = rope
        self.attention = attention
        self.ops = ops

    @property
    def linear_backend(self) -> str:
        """The kind of linear its layers use."""
        return self.weights.layers[0].qkv.name

    @property
    def weights_bytes(self) -> int:
        """Memory that the weights take. A tied head counts where it is a copy of its own."""
        w = self.weights
        total = w.embedding.num_bytes + w.final_norm.num_bytes + w.head.num_bytes
        for layer in w.layers:
            total += layer.attention_norm.num_bytes + layer.mlp_norm.num_bytes
            total += 0 if layer.qk_norm is None else layer.qk_norm.num_bytes
            total += sum(linear.num_bytes for linear in (layer.qkv, layer.o, layer.gate_up, layer.down))
        return total

    def forward(self, batch: Batch, kv: KVCache) -> torch.Tensor:
        """Computes all rows, writes the KV of the batch's write rows, and returns logits_SV in what the head gives."""
        return self.finish(self.begin(batch, kv))

    @torch.inference_mode()
    def begin(self, batch: Batch, kv: KVCache) -> DecoderStep:
        """The part of a step that takes the batch in: it ends before the first linear."""
        w = self.weights
        ops = self.ops.begin(batch, kv, self.rope)
        attention = self.attention.begin(batch, kv)
        h_TE = ops.embed(w.embedding(batch.input_ids_T), w.layers[0].attention_norm)
        return DecoderStep(ops=ops, attention=attention, h_TE=h_TE, num_samples=batch.sample_rows_S.shape[0])

    @torch.inference_mode()
    def finish(self, step: DecoderStep) -> torch.Tensor:
        """The rest of the step, and its logits_SV."""
        w, ops, attention = self.weights, step.ops, step.attention
        qkv = w.layers[0].qkv(step.h_TE)
        for index, layer in enumerate(w.layers):
            q_THD = ops.rotate_and_store(index, qkv, layer.qk_norm)
            following = w.layers[index + 1] if index + 1 < len(w.layers) else None
            if following is None and step.num_samples == 0:  # a chunk in the middle of a prompt
                return q_THD.new_empty((0, self.config.vocab_size))
            attended_TA = attention.attend(index, q_THD).flatten(1)
            if following is None:
                attended_TA = ops.keep_sampled(attended_TA)
            delta_TE = layer.down(ops.add_norm_gate_up(layer.o(attended_TA), layer.mlp_norm, layer.gate_up))
            if following is not None:
                qkv = ops.add_norm_linear(delta_TE, following.attention_norm, following.qkv)
        return w.head(ops.add_norm(delta_TE, w.final_norm))
