"""Made model files: tiny directories in Hugging Face layout and tiny GGUF files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TINY_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "eos_token_id": 258,
    "torch_dtype": "bfloat16",
}


def byte_tokens() -> list[str]:
    """The 256 characters that byte-level BPE writes bytes as."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def write_tokenizer(path: Path, *special: str) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(byte_tokens())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(path))


class HfDirectory:
    """A directory whose files a test can change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self.write("config.json", TINY_QWEN3)
        write_tokenizer(path / "tokenizer.json", "<s>", "<|end|>", "<|im_end|>")
        self.tokenizer_config()
        save_file({"x": np.zeros(8, np.float32)}, path / "model.safetensors")

    def write(self, name: str, content: dict[str, Any] | str) -> None:
        (self.path / name).write_text(content if isinstance(content, str) else json.dumps(content))

    def tokenizer_config(self, **keys: object) -> None:
        """Of a class that takes tokenizer.json as it is."""
        self.write("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"} | keys)

    def config(self, **changes: object) -> None:
        """config.json with changes; None removes a key."""
        merged = {key: value for key, value in (TINY_QWEN3 | changes).items() if value is not None}
        self.write("config.json", merged)


class GgufSource:
    """What a made GGUF file says; a test changes it and calls `write`."""

    def __init__(self) -> None:
        self.architecture = "qwen3"
        self.numbers: dict[str, float] = {
            "block_count": 2,
            "context_length": 512,
            "embedding_length": 64,
            "feed_forward_length": 96,
            "attention.head_count": 4,
            "attention.head_count_kv": 2,
            "attention.key_length": 32,
            "attention.value_length": 32,
            "attention.layer_norm_rms_epsilon": 1e-6,
            "rope.freq_base": 1e6,
        }
        self.texts: dict[str, str] = {}
        self.tokens = [*byte_tokens(), "<|endoftext|>", "<|im_end|>", "<tool>"]
        self.types = [1] * 256 + [3, 3, 4]
        self.merges = ["h e", "l l", "Ġ he"]
        self.tokens += ["he", "ll", "Ġhe"]
        self.types += [1, 1, 1]
        self.pre: str | None = "qwen2"
        self.algorithm = "gpt2"
        self.ids = {"eos_token_id": 257, "padding_token_id": 256}
        self.add_bos: bool | None = None
        self.chat_template: str | None = None
        self.values: dict[str, Any] = {}
        """Any other keys, whole: booleans, numbers, texts or lists."""
        self.tensors: dict[str, tuple[int, ...]] = {"blk.0.attn_q_norm.weight": (32,)}
        self.blocks: int | None = None
        """Of how many blocks it has a tensor; none is `block_count`."""
        self.extra: list[tuple[str, Any]] = []
        """Keys with the architecture's name or another's in front."""
        self.split_max_tensors = 0

    def write(self, path: Path) -> Path:
        import gguf

        writer = gguf.GGUFWriter(path, self.architecture, split_max_tensors=self.split_max_tensors)
        for key, value in self.extra:
            kind = gguf.GGUFValueType.get_type(value)
            writer.add_key_value(key, value, gguf.GGUFValueType.UINT32 if kind.name == "INT32" else kind)
        for key, value in self.numbers.items():
            add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
            add(f"{self.architecture}.{key}", value)
        for key, text in self.texts.items():
            writer.add_string(f"{self.architecture}.{key}", text)
        writer.add_tokenizer_model(self.algorithm)
        if self.pre is not None:
            writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.merges:
            writer.add_token_merges(self.merges)
        for key, index in self.ids.items():
            writer.add_uint32(f"tokenizer.ggml.{key}", index)
        if self.add_bos is not None:
            writer.add_add_bos_token(self.add_bos)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)
        for key, value in self.values.items():
            match value:
                case bool():
                    writer.add_bool(key, value)
                case int():
                    writer.add_uint32(key, value)
                case str():
                    writer.add_string(key, value)
                case _:
                    writer.add_array(key, value)
        writer.add_tensor("token_embd.weight", np.zeros((len(self.tokens), 64), np.float32))
        for index in range(int(self.numbers.get("block_count", 0)) if self.blocks is None else self.blocks):
            writer.add_tensor(f"blk.{index}.attn_norm.weight", np.zeros(64, np.float32))
        for name, shape in self.tensors.items():
            writer.add_tensor(name, np.zeros(shape, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path
