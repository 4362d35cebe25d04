"""A model of random weights that thinks: its template and tokenizer have Qwen3's markers of reasoning and calls."""

import json
from pathlib import Path

import torch
from support.tiny_tokenizer import END_OF_TURN, make_tokenizer
from tokenizers import AddedToken
from transformers import Qwen3Config, Qwen3ForCausalLM

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking %}{{ '<think>\n' }}{% endif %}{% endif %}"
    "{# <think> </think> <tool_call> #}"
)


def save_thinking_model(directory: Path) -> None:
    """Files that `serve` reads; a context of 512 tokens."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken(text, special=False) for text in ("<think>", "</think>", "<tool_call>")])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=512,
        initializer_range=0.2,
        eos_token_id=tokenizer.token_to_id(END_OF_TURN),
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)
