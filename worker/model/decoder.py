"""A dense decoder: one definition for Qwen3, Qwen2, Llama and Mistral, which differ in flags of `DecoderConfig`.

    x = embedding[ids]
    layer:  x += o( attention( rope( norm( qkv( rms(x) )))))
            x += down( silu(gate) · up )      gate, up = gate_up( rms(x) )
    logits = head( rms(x[sampled rows]) )

The decoder is a plain object that holds plain tensors and linears: it has no parameters to register, no autograd and
no knowledge of files, packing or ranks. Tensor parallelism replaces a layer's linears and the head from outside and
builds the decoder with the local numbers of heads. Head numbers in `forward` therefore come from the config it was
given. Nothing in `forward` reads a tensor back to the host, so that it can be captured in a CUDA graph.

Shapes as in `pagewire.worker.batch`; F is the MLP's inner size, J = 2K.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pagewire.wire.model import DecoderConfig
from pagewire.worker.attention.base import AttentionBackend, AttentionStep
from pagewire.worker.batch import Batch
from pagewire.worker.kv_cache import KVCache
from pagewire.worker.model.linear import Linear
from pagewire.worker.model.norm import RmsNorm
from pagewire.worker.model.rope import RotaryEmbedding, Rotation


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

    embedding_VE: torch.Tensor
    layers: Sequence[DecoderLayer]
    final_norm: RmsNorm
    head: Linear


@dataclass(frozen=True, slots=True)
class _Step:
    """What all layers of one forward pass share."""

    attention: AttentionStep
    rotation: Rotation
    kv: KVCache
    kv_rows: torch.Tensor
    write_rows_W: torch.Tensor | None
    """None where every row is written."""


class Decoder:
    """The model, ready to run. `forward` is its only method that matters after loading."""

    def __init__(
        self, config: DecoderConfig, weights: DecoderWeights, rope: RotaryEmbedding, attention: AttentionBackend
    ) -> None:
        self.config = config
        self.weights = weights
        self.rope = rope
        self.attention = attention

    @property
    def linear_backend(self) -> str:
        """The kind of linear its layers use."""
        return self.weights.layers[0].qkv.name

    @property
    def weights_bytes(self) -> int:
        """Memory that the weights take. A tied head counts where it is a copy of its own."""
        w = self.weights
        total = w.embedding_VE.nbytes + w.final_norm.num_bytes + w.head.num_bytes
        for layer in w.layers:
            total += layer.attention_norm.num_bytes + layer.mlp_norm.num_bytes
            total += 0 if layer.qk_norm is None else layer.qk_norm.num_bytes
            total += sum(linear.num_bytes for linear in (layer.qkv, layer.o, layer.gate_up, layer.down))
        return total

    @torch.inference_mode()
    def forward(self, batch: Batch, kv: KVCache) -> torch.Tensor:
        """Computes all rows, writes the KV of the batch's write rows, and returns logits_SV, float32."""
        w = self.weights
        all_written = batch.write_rows_W.shape[0] == batch.input_ids_T.shape[0]
        step = _Step(
            attention=self.attention.begin(batch, kv),
            # Heads that are normalized are fp32 at that point; others are turned in place in the model's dtype.
            rotation=self.rope.at(batch.positions_T, torch.float32 if self.config.qk_norm else kv.dtype),
            kv=kv,
            kv_rows=kv.row_index(batch.write_slots_W),
            write_rows_W=None if all_written else batch.write_rows_W,
        )
        # The sum of the layers stays in fp32: the norms need it so, and bf16 would round it twice per layer.
        x_TE = F.embedding(batch.input_ids_T, w.embedding_VE).float()
        for index, layer in enumerate(w.layers):
            x_TE.add_(self._attention(index, layer, layer.attention_norm(x_TE).to(kv.dtype), step))
            x_TE.add_(self._mlp(layer, layer.mlp_norm(x_TE).to(kv.dtype)))
        x_SE = w.final_norm(x_TE.index_select(0, batch.sample_rows_S)).to(kv.dtype)
        if x_SE.shape[0] == 0:  # a chunk in the middle of a prompt; oneDNN takes no empty matrix
            return x_SE.new_empty((0, self.config.vocab_size), dtype=torch.float32)
        return w.head(x_SE).float()

    def _attention(self, index: int, layer: DecoderLayer, x_TE: torch.Tensor, step: _Step) -> torch.Tensor:
        c = self.config
        num_rows = x_TE.shape[0]
        qkv = layer.qkv(x_TE).view(num_rows, c.num_heads + 2 * c.num_kv_heads, c.head_dim)
        # q and k are neighbours and get norm and rotation together; then k and v are, and are stored together.
        qk = qkv.narrow(1, 0, c.num_heads + c.num_kv_heads)
        if layer.qk_norm is None:
            step.rotation.apply_(qk)
        else:
            normed = layer.qk_norm(qk)
            step.rotation.apply_(normed)
            qk.copy_(normed)
        q_THD, kv_TJD = qkv.split_with_sizes((c.num_heads, 2 * c.num_kv_heads), dim=1)
        if step.write_rows_W is not None:
            kv_TJD = kv_TJD.index_select(0, step.write_rows_W)
        step.kv.write(index, step.kv_rows, kv_TJD)
        return layer.o(step.attention.attend(index, q_THD).view(num_rows, c.num_heads * c.head_dim))

    def _mlp(self, layer: DecoderLayer, x_TE: torch.Tensor) -> torch.Tensor:
        gate_TF, up_TF = layer.gate_up(x_TE).chunk(2, dim=-1)
        return layer.down(F.silu(gate_TF).mul_(up_TF))
