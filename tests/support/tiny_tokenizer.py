"""A small byte-level BPE tokenizer, trained in the test, and the specification of a model around it."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from pagewire.wire.model import DecoderConfig, ModelSpec

END_OF_TURN = "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = [
    "The quick brown fox jumps over the lazy dog. STOP here, and STOP there.",
    "Grüße aus Köln! Das Wetter ist schön. 你好，世界。 Привет, мир!",
    "Numbers 1234567890; and so on, and so on; hello hello world world.",
]


def make_tokenizer() -> Tokenizer:
    """Every byte is a token, so any text can be written, and most characters outside ASCII take several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken(END_OF_TURN, special=True)])
    return tokenizer


def make_spec(directory: Path, *, with_text: bool = True, template: str | None = TEMPLATE) -> ModelSpec:
    """A model around it; the embedding has more rows than the tokenizer has tokens, as real ones do."""
    tokenizer = make_tokenizer()
    file = directory / "tokenizer.json"
    tokenizer.save(str(file))
    end = tokenizer.token_to_id(END_OF_TURN)
    return ModelSpec(
        name="tiny",
        decoder=DecoderConfig(
            architecture="qwen3",
            hidden_size=8,
            intermediate_size=8,
            num_layers=1,
            num_heads=1,
            num_kv_heads=1,
            head_dim=8,
            vocab_size=384,
            max_position_embeddings=512,
            rms_norm_eps=1e-6,
            rope_theta=1e4,
            tie_word_embeddings=True,
            qk_norm=True,
            qkv_bias=False,
        ),
        weights_format="random",
        weights_files=(),
        weights_digest="random:0",
        eos_token_ids=(end,),
        tokenizer_file=str(file) if with_text else None,
        tokenizer_digest="sha256:test" if with_text else "",
        chat_template=template if with_text else None,
        special_tokens={"eos_token": END_OF_TURN} if with_text else {},
    )


def save_letters_tokenizer(directory: Path, vocab_size: int) -> int:
    """Into a checkpoint of so few ids that not every byte has one: letters, digits, some pairs of letters, and what
    JSON needs; other ids have no text. Returns the last id, which ends an output, and tells the checkpoint's files."""
    alphabet = 'abcdefghijklmnopqrstuvwxyz0123456789{}[]":,'
    pairs = [first + second for first in "abcdef" for second in "abcdef"]
    vocab = {text: index for index, text in enumerate([*alphabet, *pairs])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[(pair[0], pair[1]) for pair in pairs]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fillers = [AddedToken(f"<{index}>", special=True) for index in range(len(vocab), vocab_size)]
    tokenizer.add_special_tokens(fillers)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    end = vocab_size - 1
    for name in ("config.json", "generation_config.json"):
        file = directory / name
        said = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**said, "eos_token_id": end}))
    return end
