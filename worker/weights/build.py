"""A decoder built from a model's tensors: they are checked, what runs together is fused, each linear made by its kind.

Layers are read and packed by as many threads as the worker has. A thread assembles, packs and frees one linear before
it reads the next, and the embedding and the head, the largest, come before the layers: so peak memory is the finished
weights and a linear for each thread.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from pagewire.wire.model import DecoderConfig, DType, ModelSpec
from pagewire.wire.tensors import EMBEDDING, HEAD, ROPE_FACTORS, check_tensors
from pagewire.worker.attention.base import AttentionBackend
from pagewire.worker.linears.torch import TorchLinears, choose_linear
from pagewire.worker.model.decoder import Decoder, DecoderLayer, DecoderWeights
from pagewire.worker.model.layers import Embedding, Linear, LinearKind, RmsNorm, TableEmbedding
from pagewire.worker.model.ops import DecoderOps, TorchOps
from pagewire.worker.model.rope import rotary_embedding
from pagewire.worker.weights.random_source import RandomSource
from pagewire.worker.weights.source import SafetensorsSource, TensorSource, settle_tying

TORCH_DTYPES: dict[DType, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def open_source(spec: ModelSpec) -> TensorSource:
    """The source that the model's format asks for. Raises WeightsError."""
    match spec.weights_format:
        case "safetensors":
            return SafetensorsSource(spec.weights_files)
        case "gguf":
            # Imported here because the package takes 0.2 s, for a format that most starts do not meet.
            from pagewire.worker.weights.gguf_source import GgufSource

            return GgufSource(spec.weights_files, spec.decoder)
        case "random":
            return RandomSource(spec.decoder, spec.random_seed)


def load_decoder(
    spec: ModelSpec,
    dtype: DType,
    attention: AttentionBackend,
    progress: Callable[[str, float], None],
    ops: DecoderOps | None = None,
    linears: LinearKind | None = None,
    num_threads: int = 1,
) -> Decoder:
    """The model on the CPU, its weights in `dtype`. Without `ops` and `linears`, torch's operators compute it.

    `progress` is called with ("weights", fraction) after the head and every layer, on this thread. Raises WeightsError
    where files and configuration do not fit each other, naming tensor and file; ValueError where the configuration
    does not fit itself.
    """
    source = open_source(spec)
    check_tensors(source, spec.decoder)
    config = settle_tying(source, spec.decoder, TORCH_DTYPES[dtype])
    return build_decoder(source, config, dtype, attention, progress, ops, linears, num_threads)


@torch.inference_mode()
def build_decoder(
    source: TensorSource,
    config: DecoderConfig,
    dtype: DType,
    attention: AttentionBackend,
    progress: Callable[[str, float], None],
    ops: DecoderOps | None = None,
    linears: LinearKind | None = None,
    num_threads: int = 1,
) -> Decoder:
    """The same from a source whose tensors have been checked, or from the part of one that a rank computes; its tables
    of the vocabulary may have fewer rows than `config` says, which has the whole vocabulary's size."""
    torch_dtype = TORCH_DTYPES[dtype]
    if linears is None:
        linears = TorchLinears(choose_linear(torch.device("cpu"), torch_dtype))
    assembler = _Assembler(source, config, torch_dtype, linears)
    freq_factors = None
    if ROPE_FACTORS in source.shapes:
        freq_factors = assembler.read([ROPE_FACTORS], torch.float32)
    rope = rotary_embedding(config, freq_factors)

    # The head counts for as much progress as its weight is larger than a layer's.
    layer_values = config.hidden_size * (
        (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim + 3 * config.intermediate_size
    )
    head_share = config.vocab_size * config.hidden_size / layer_values
    embedding: Embedding
    if config.tie_word_embeddings:
        embedding, head = linears.tied(assembler.fused([EMBEDDING]))
    else:
        embedding = TableEmbedding(assembler.fused([EMBEDDING]))
        head = linears.head(assembler.fused([HEAD]))
    progress("weights", head_share / (config.num_layers + head_share))
    layers = []
    with ThreadPoolExecutor(num_threads, thread_name_prefix="load") as pool:
        for layer in pool.map(assembler.layer, range(config.num_layers)):
            layers.append(layer)
            progress("weights", (len(layers) + head_share) / (config.num_layers + head_share))
    weights = DecoderWeights(
        embedding=embedding, layers=layers, final_norm=assembler.norm("model.norm.weight"), head=head
    )
    return Decoder(config, weights, rope, attention, TorchOps(config) if ops is None else ops)


class _Assembler:
    """Reads tensors and makes a decoder's parts of them."""

    def __init__(self, source: TensorSource, config: DecoderConfig, dtype: torch.dtype, linears: LinearKind) -> None:
        self._source = source
        self._config = config
        self._dtype = dtype
        self._linears = linears

    def layer(self, index: int) -> DecoderLayer:
        c = self._config
        prefix = f"model.layers.{index}."
        attention, mlp = prefix + "self_attn.", prefix + "mlp."
        qk_norm = None
        if c.qk_norm:
            q_norm, k_norm = self.fused([attention + "q_norm.weight"]), self.fused([attention + "k_norm.weight"])
            both = torch.cat((q_norm.expand(c.num_heads, -1), k_norm.expand(c.num_kv_heads, -1)))
            qk_norm = RmsNorm(both, c.rms_norm_eps)
        return DecoderLayer(
            attention_norm=self.norm(prefix + "input_layernorm.weight"),
            qkv=self._linear([attention + "q_proj", attention + "k_proj", attention + "v_proj"], c.qkv_bias),
            qk_norm=qk_norm,
            o=self._linear([attention + "o_proj"], c.o_bias),
            mlp_norm=self.norm(prefix + "post_attention_layernorm.weight"),
            gate_up=self._linear([mlp + "gate_proj", mlp + "up_proj"], c.mlp_bias),
            down=self._linear([mlp + "down_proj"], c.mlp_bias),
        )

    def _linear(self, names: Sequence[str], has_bias: bool) -> Linear:
        weight = self.fused([name + ".weight" for name in names])
        bias = self.fused([name + ".bias" for name in names]) if has_bias else None
        return self._linears.linear(weight, bias)

    def norm(self, name: str) -> RmsNorm:
        return RmsNorm(self.fused([name]), self._config.rms_norm_eps)

    def fused(self, names: Sequence[str]) -> torch.Tensor:
        """The tensors one below the other, in the model's dtype, on the model's device."""
        return self.read(names, self._dtype).to(self._linears.device)

    def read(self, names: Sequence[str], dtype: torch.dtype) -> torch.Tensor:
        """The same on the CPU, in any dtype."""
        shapes = [self._source.shapes[name] for name in names]
        num_rows = sum(shape[0] for shape in shapes)
        out = torch.empty((num_rows, *shapes[0][1:]), dtype=dtype)
        start = 0
        for name, shape in zip(names, shapes, strict=True):
            self._source.copy_to(name, out[start : start + shape[0]])
            start += shape[0]
        return out
