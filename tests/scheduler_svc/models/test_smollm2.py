"""The default model, fetched for real, and its tokenizer against transformers' own reading of the same file.

transformers ignores the file's `tokenizer.ggml.pre`, which says that digits stand alone. With ASCII digits that makes
no difference, as no merge joins them; before other numerals (a space and a Roman numeral character) it does, and there
the comparison is with transformers' reading plus that cut, which the model's published tokenizer.json has too.
"""

import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.models import QUIET
from support.smollm2 import cache_dir, smollm2_file
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pagewire.scheduler_svc.models.resolve import resolve_model
from pagewire.wire.model import ModelSpec

pytestmark = pytest.mark.model

TEXTS = [
    "What is the capital of France?",
    "  leading, trailing and   inner   spaces  ",
    "tabs\tand\n\nnewlines\r\nof both kinds\n \n",
    "1234567890 3.14159 1,000,000 0x1F",
    "２０２６٣٤",
    "don't can't we'll I'M YOU'RE it's",
    "def f(x: int) -> str:\n    return f'{x!r}'  # naïve\n",
    "Ünïcödé, e\u0301 and é, ﬁ ligature, İstanbul, ß",
    "日本語のテキスト、中文文本 and 한국어",
    "👩‍👩‍👧‍👦 🇫🇷 👍🏽 \u200b\u200d\ufeff",
    "السلام عليكم שלום नमस्ते ไทย",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|> <|im_ start|> <repo_name>x",
    "\x00\x01\x7f\x80",
    "a" * 300 + " " * 300,
    "",
]


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    smollm2_file()
    return resolve_model(
        "smollm2-135m",
        served_name=None,
        weights_needed=True,
        cache_dir=cache_dir(),
        environ=os.environ,
        progress=QUIET,
    )


@pytest.fixture(scope="module")
def ours(spec: ModelSpec) -> Tokenizer:
    assert spec.tokenizer_file is not None
    return Tokenizer.from_file(spec.tokenizer_file)


@pytest.fixture(scope="module")
def theirs(spec: ModelSpec) -> PreTrainedTokenizerBase:
    file = Path(spec.weights_files[0])
    return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)


def test_what_it_is(spec: ModelSpec) -> None:
    assert spec.name == "smollm2-135m"
    assert (spec.decoder.architecture, spec.decoder.num_layers, spec.decoder.vocab_size) == ("llama", 30, 49152)
    assert (spec.decoder.rope_theta, spec.decoder.rms_norm_eps, spec.decoder.tie_word_embeddings) == (1e5, 1e-5, True)
    assert spec.eos_token_ids == (2, 0)
    assert spec.special_tokens["eos_token"] == "<|im_end|>"


@pytest.mark.parametrize("text", TEXTS)
def test_same_ids_and_text_as_transformers(ours: Tokenizer, theirs: PreTrainedTokenizerBase, text: str) -> None:
    ids = ours.encode(text).ids
    assert ids == theirs.encode(text)
    assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids, clean_up_tokenization_spaces=False)
    assert ours.decode(ids, skip_special_tokens=False) == text


def test_same_ids_as_transformers_for_any_text(ours: Tokenizer, theirs: PreTrainedTokenizerBase) -> None:
    with_cut = Tokenizer.from_str(theirs.backend_tokenizer.to_str())
    digits = pre_tokenizers.Digits(individual_digits=True)
    with_cut.pre_tokenizer = pre_tokenizers.Sequence([digits, with_cut.pre_tokenizer])

    @given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
    @example(" ⅷ ½ ٣٤ a１")
    @settings(max_examples=500, deadline=None)
    def same(text: str) -> None:
        assert ours.encode(text).ids == with_cut.encode(text).ids
        if not any(character.isnumeric() and not character.isascii() for character in text):
            assert ours.encode(text).ids == theirs.encode(text)

    same()


def test_same_special_tokens_and_template(spec: ModelSpec, theirs: PreTrainedTokenizerBase) -> None:
    assert spec.chat_template == theirs.chat_template
    assert spec.special_tokens == theirs.special_tokens_map
