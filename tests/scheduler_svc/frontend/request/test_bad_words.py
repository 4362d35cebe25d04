"""Bad words: the lists of ids that write them, as a real tokenizer does."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.tiny_tokenizer import make_spec, make_tokenizer

from pagewire.scheduler_svc.frontend.errors import InvalidArgument
from pagewire.scheduler_svc.frontend.request.bad_words import bad_word_ids
from pagewire.scheduler_svc.frontend.text.tokenizer import TextTokenizer
from pagewire.wire.columns import unpack


def ids_of(directory: Path, words: list[str], vocab_size: int = 384) -> list[list[int]]:
    spec = make_spec(directory)
    assert spec.tokenizer_file is not None
    with ThreadPoolExecutor(1) as threads:
        tokenizer = TextTokenizer(spec.tokenizer_file, spec, threads)
        found = asyncio.run(bad_word_ids(words, tokenizer, vocab_size, ""))
    return [unpack(column).tolist() for column in found]


def test_each_word_is_taken_as_it_stands_and_behind_a_space(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in ("no", " no", "wörld", " wörld")]
    assert ids_of(tmp_path, ["no", "wörld"]) == expected


def test_what_comes_twice_is_kept_once(tmp_path: Path) -> None:
    assert ids_of(tmp_path, ["no", " no", "no"]) == ids_of(tmp_path, ["no", " no"])


def test_tokens_that_have_no_logit_are_refused_with_the_word(tmp_path: Path) -> None:
    highest = max(make_tokenizer().encode("hello").ids)
    with pytest.raises(InvalidArgument, match=rf"bad_words\[1\] has token \d+; the model's are less than {highest}"):
        ids_of(tmp_path, ["!", "hello"], vocab_size=highest)


def test_more_tokens_than_a_worker_holds_are_refused(tmp_path: Path) -> None:
    words = [f"{index:064d}" for index in range(128)]
    with pytest.raises(InvalidArgument, match=r"are \d+ tokens in all, .*; at most 4096 may be"):
        ids_of(tmp_path, words)
