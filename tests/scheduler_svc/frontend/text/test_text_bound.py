"""The bound against the library itself: no text that is few enough tokens may be over it."""

import json
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.tiny_tokenizer import END_OF_TURN, make_tokenizer
from tokenizers import AddedToken, Tokenizer

from pagewire.scheduler_svc.frontend.text.detokenizer import BYTE_LEVEL_ALPHABET
from pagewire.scheduler_svc.frontend.text.text_bound import TextBound

FORMS = [{"type": form} for form in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase")]
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


def byte_level(**changes: Any) -> dict[str, Any]:
    return json.loads(make_tokenizer().to_str()) | changes


def pieces(**changes: Any) -> dict[str, Any]:
    """SentencePiece with byte fallback, as Llama 2 and Mistral have it."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "▁ab", "ab", "▁▁", "▁▁▁▁"]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": "<unk>",
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": {word: number for number, word in enumerate(words)},
        "merges": [["▁", "a"], ["a", "b"], ["▁a", "b"], ["▁", "▁"], ["▁▁", "▁▁"]],
    }
    normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, SPACES]}
    return (
        byte_level(normalizer=normalizer, pre_tokenizer=None, post_processor=None, decoder=None, model=model) | changes
    )


def without_bytes(*lost: int) -> dict[str, Any]:
    """Byte-level, with a vocabulary that lacks some bytes, as SmolLM2's does: they vanish."""
    definition = byte_level()
    letters = [letter for letter, byte in BYTE_LEVEL_ALPHABET.items() if byte in lost]
    model = definition["model"]
    model["merges"] = [pair for pair in model["merges"] if not any(letter in "".join(pair) for letter in letters)]
    kept = [token for token in model["vocab"] if not any(letter in token for letter in letters)]
    model["vocab"] = {token: number for number, token in enumerate(kept)}
    definition["added_tokens"] = []
    return definition


def bound_and_library(definition: dict[str, Any]) -> tuple[TextBound, Tokenizer]:
    encoded = json.dumps(definition).encode()
    library = Tokenizer.from_buffer(encoded)
    return TextBound(encoded, library.get_added_tokens_decoder().values(), BYTE_LEVEL_ALPHABET), library


KNOWN: dict[str, Callable[[], dict[str, Any]]] = {
    "byte level": byte_level,
    "pieces": pieces,
    "bytes that vanish": lambda: without_bytes(0xC3, 0x61, 0x04),
    "byte level by a normalizer": lambda: byte_level(normalizer={"type": "ByteLevel"}, pre_tokenizer=None),
    "compatibility after a replacement": lambda: byte_level(
        normalizer={
            "type": "Sequence",
            "normalizers": [{"type": "Replace", "pattern": {"String": "aa"}, "content": "²"}, {"type": "NFKC"}],
        }
    ),
    **{str(form["type"]): lambda form=form: byte_level(normalizer=form) for form in FORMS},  # type: ignore[misc]
    "lower case, composed": lambda: byte_level(normalizer={"type": "Sequence", "normalizers": [FORMS[4], FORMS[0]]}),
}
HARD = [
    "\u1fbe\u0308\u0301",
    "\u212a",
    "\u212a\u0327",
    "𝐀",
    "𝛖\u0308\u0301",
    "e\u0301",
    "aa",
    " ",
    "x",
    "é",
    "\u0004",
    "한",
]
TEXTS = st.lists(st.one_of(st.sampled_from([*HARD, END_OF_TURN]), st.text(max_size=3)), max_size=12)
MANY = st.integers(1, 40)


@pytest.mark.parametrize("kind", KNOWN)
def test_no_text_that_fits_is_over_its_bound(kind: str) -> None:
    bound, library = bound_and_library(KNOWN[kind]())

    @given(TEXTS, MANY)
    @example(HARD, 40)
    @example([" "], 400)
    @example(["the fox "], 40)
    def holds(parts: list[str], times: int) -> None:
        text = "".join(parts) * times
        num_tokens = len(library.encode_batch_fast([text], add_special_tokens=False)[0].ids)
        assert bound.excess(text, num_tokens) is None

    holds()
    # It is a bound: what is far over it is found.
    assert bound.excess("zq" * 50_000, 10) is not None


@pytest.mark.parametrize(
    "definition",
    [
        byte_level(normalizer={"type": "Strip", "strip_left": True, "strip_right": True}),
        byte_level(normalizer={"type": "StripAccents"}),
        byte_level(normalizer={"type": "Replace", "pattern": {"String": "ab"}, "content": "a"}),
        byte_level(normalizer={"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}),
        byte_level(pre_tokenizer={"type": "WhitespaceSplit"}),
        byte_level(
            pre_tokenizer={
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False},
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
                ],
            }
        ),
        without_bytes(0x61) | {"normalizer": {"type": "NFC"}},
        pieces(model={**pieces()["model"], "byte_fallback": False}),
    ],
)
def test_where_text_of_any_length_may_be_lost_there_is_no_bound(definition: dict[str, Any]) -> None:
    bound, _ = bound_and_library(definition)
    assert bound.excess("zq" * 500_000, 1) is None


def test_a_token_that_takes_the_spaces_beside_it_along_leaves_no_bound() -> None:
    definition = byte_level()
    bound = TextBound(json.dumps(definition).encode(), [AddedToken("<end>", rstrip=True)], BYTE_LEVEL_ALPHABET)
    assert bound.excess("x" * 500_000, 1) is None


def test_normal_forms_shorten_no_character_by_more_than_the_bound_says() -> None:
    for form, most in (("NFC", 4), ("NFD", 4), ("NFKC", 4), ("NFKD", 4)):
        for text in map(chr, range(0x110000)):
            if not "\ud800" <= text <= "\udfff":
                shrunk = unicodedata.normalize(form, text)  # type: ignore[arg-type]
                assert len(text.encode()) <= most * len(shrunk.encode())
