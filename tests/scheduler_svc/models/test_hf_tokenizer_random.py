"""Random tokenizer files, whose keys and files contradict each other at will, judged by transformers' AutoTokenizer."""

import asyncio
import os
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.model_files import HfDirectory
from tokenizers import AddedToken, Tokenizer

from pagewire.scheduler_svc.frontend.text.tokenizer import TextTokenizer

from .test_hf_tokenizer import FAST, byte_level, read, sentence_piece, write

transformers = pytest.importorskip("transformers")

RUNS = int(os.environ.get("PAGEWIRE_TEST_RUNS", "25"))
NAMES = ["<|a|>", "<|b|>", "<|c|>", "<|d|>", "</s>", "<s>", "he", "Ġhe"]
TEXTS = ["hello <|a|> he<|b|> <|c|>x</s> <s> hehe  <|d|>", "<|a|><|b|><|c|><|d|>", "he</s>"]
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
CLASSES = [None, FAST["tokenizer_class"], "LlamaTokenizer", "Qwen2Tokenizer", "GPT2TokenizerFast"]


class Draw:
    """One directory's files."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.in_pieces = self._chance(0.3)
        self._normalized = self._some(3)
        self.family = self._random.choice(["llama", "mistral"] if self.in_pieces else ["llama", "qwen3", "qwen2"])
        added = [AddedToken(name, **self._flags(name)) for name in self._some(3)]
        self.tokenizer = sentence_piece(*added) if self.in_pieces else byte_level(*added)
        self.files: dict[str, dict[str, Any]] = {"tokenizer_config": self._config()}
        if self._chance(0.4):
            names = self._random.sample(["bos_token", "eos_token", "pad_token"], 2)
            self.files["special_tokens_map"] = {name: self._named(typed=False) for name in names}
        if self._chance(0.4):
            size = self.tokenizer.get_vocab_size()
            self.files["added_tokens"] = {name: size + i for i, name in enumerate(self._some(2))}

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def _some(self, most: int) -> list[str]:
        return self._random.sample(NAMES, self._random.randint(0, most))

    def _flags(self, name: str) -> dict[str, bool]:
        """Any, but for one: of a token that two files match on different sides of the normalizer, the library keeps
        some of both in memory, which no tokenizer.json can say."""
        return {flag: self._chance(0.3) for flag in FLAGS} | {"normalized": name in self._normalized}

    def _named(self, typed: bool) -> Any:
        name = self._random.choice(NAMES)
        if self._chance(0.6) and name not in self._normalized:
            return name
        flags = self._flags(name)
        del flags["special"]
        return {"content": name, **flags} | ({"__type": "AddedToken"} if typed else {})

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = {}
        chosen = self._random.choice(CLASSES[:3] if self.in_pieces else CLASSES)
        if chosen is not None:
            config["tokenizer_class"] = chosen
        if self._chance(0.5):
            start = self.tokenizer.get_vocab_size() - 2
            config["added_tokens_decoder"] = {
                str(start + 2 * i): {"content": name, **self._flags(name)} for i, name in enumerate(self._some(4))
            }
        for name in ("bos_token", "eos_token", "pad_token", "unk_token", "image_token"):
            if self._chance(0.4):
                config[name] = self._named(typed=True)
            elif self._chance(0.2) and name != "image_token":
                config[name] = None
        if self._chance(0.2):
            config["extra_special_tokens"] = {"x_token": self._named(typed=True)}
        for flag in ("split_special_tokens", "add_prefix_space", "legacy", "add_bos_token", "add_eos_token"):
            if self._chance(0.3):
                config[flag] = self._chance(0.5)
        return config


@pytest.mark.parametrize("seed", range(RUNS))
def test_whatever_files_say_is_read_as_by_transformers(hf_directory: HfDirectory, seed: int) -> None:
    draw = Draw(seed)
    write(hf_directory, (draw.family, lambda: draw.tokenizer, draw.files))
    theirs = transformers.AutoTokenizer.from_pretrained(hf_directory.path)
    spec = read(hf_directory)
    assert spec.special_tokens == theirs.special_tokens_map
    assert spec.tokenizer_file is not None
    assert Tokenizer.from_file(spec.tokenizer_file).get_vocab() == theirs.get_vocab()
    # The library forgets that a token is special where it is matched behind a normalizer that changes it.
    forgotten = {
        index
        for index, token in theirs.added_tokens_decoder.items()
        if theirs.convert_ids_to_tokens(index) != token.content
    }

    async def test(ours: TextTokenizer) -> None:
        for text in TEXTS:
            ids = theirs(text)["input_ids"]
            assert await ours.encode(text, add_special_tokens=True) == ids, text
            for skip in (True, False):
                kept = [index for index in ids if not skip or index not in forgotten]
                assert await ours.decode(kept, skip_special_tokens=skip) == theirs.decode(
                    kept, skip_special_tokens=skip
                ), text

    with ThreadPoolExecutor(1) as threads:
        asyncio.run(test(TextTokenizer(spec.tokenizer_file, spec, threads)))
