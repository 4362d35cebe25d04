"""Bad words: from texts to the lists of ids that write them.

A tokenizer writes a word in one way at the start of a text and in another behind a space, and a model writes mostly the
second. Both are taken; other tokens that make the same text are not looked for.
"""

from collections.abc import Sequence

from pagewire.scheduler_svc.frontend.errors import InvalidArgument
from pagewire.scheduler_svc.frontend.text.tokenizer import TextTokenizer
from pagewire.wire.columns import ID_BYTES, pack
from pagewire.wire.logits import MAX_BAD_WORD_IDS

_PATH = "generation.sampling.bad_words"


async def bad_word_ids(words: Sequence[str], tokenizer: TextTokenizer, vocab_size: int, client: str) -> list[bytes]:
    """int32 columns, each list of ids once. `client` is whom the work is done for. Raises InvalidArgument."""
    ways = await tokenizer.encode_each([way for word in words for way in (word, " " + word)], client=client)
    found: dict[bytes, None] = {}
    for index, ids in enumerate(ways):
        path = f"{_PATH}[{index // 2}]"
        if not 1 <= len(ids) <= MAX_BAD_WORD_IDS:
            raise InvalidArgument(path, f"is {len(ids)} tokens; 1 to {MAX_BAD_WORD_IDS} may be")
        if max(ids) >= vocab_size:
            raise InvalidArgument(path, f"has token {max(ids)}; the model's are less than {vocab_size}")
        found[pack(ids)] = None
    num_ids = sum(map(len, found)) // ID_BYTES
    if num_ids > MAX_BAD_WORD_IDS:
        how = "each text by itself and behind a space"
        raise InvalidArgument(_PATH, f"are {num_ids} tokens in all, {how}; at most {MAX_BAD_WORD_IDS} may be")
    return list(found)
