"""From token ids to text: characters, stop strings, and what is held back, against the whole text decoded at once."""

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_tokenizer import make_spec, make_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models

from pagewire.scheduler_svc.frontend.errors import ResourceExhausted
from pagewire.scheduler_svc.frontend.text import tokenizer as tokenizer_module
from pagewire.scheduler_svc.frontend.text.detokenizer import (
    Detokenizer,
    TokenBytes,
    TokenTexts,
    UnsupportedTokenizerError,
    detokenize,
)
from pagewire.scheduler_svc.frontend.text.output_text import OutputText
from pagewire.scheduler_svc.frontend.text.stop_strings import StopAutomaton, StopScanner
from pagewire.scheduler_svc.frontend.text.tokenizer import TextTokenizer

VOCAB_SIZE = 384


def texts_of(tokenizer: Tokenizer, skip_special_tokens: bool) -> TokenTexts:
    written = {token: text for text, token in tokenizer.get_vocab(with_added_tokens=True).items()}
    special = frozenset(token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special)
    hidden = special if skip_special_tokens else frozenset()
    return TokenBytes(tokenizer.to_str().encode()).texts(written, hidden, VOCAB_SIZE)


TOKENIZER = make_tokenizer()
NUM_TOKENS = TOKENIZER.get_vocab_size(with_added_tokens=True)
TEXTS = {skip: texts_of(TOKENIZER, skip) for skip in (True, False)}


def sentence_piece_tokenizer() -> Tokenizer:
    """Pieces and byte fallback, decoded as Llama 2 and Mistral do."""
    pieces = ["<unk>", *[f"<0x{byte:02X}>" for byte in range(256)], "▁Hello", "▁", "wor", "ld", "▁▁", "é", "▁the"]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return tokenizer


PIECES = sentence_piece_tokenizer()
PIECE_TEXTS = texts_of(PIECES, True)


def piece_ids(text: str) -> list[int]:
    """A token for each character, or one for each of its bytes."""
    ids = []
    for character in text.replace(" ", "▁"):
        piece = PIECES.token_to_id(character)
        ids += [piece] if piece is not None else [PIECES.token_to_id(f"<0x{b:02X}>") for b in character.encode()]
    return ids


any_ids = st.lists(st.integers(0, NUM_TOKENS - 1), max_size=40)


@given(ids=any_ids, skip=st.booleans())
def test_any_ids_token_by_token_are_the_ids_decoded_at_once(ids: list[int], skip: bool) -> None:
    detokenizer = Detokenizer(TEXTS[skip])
    parts = [detokenizer.take(token) for token in ids]
    for part in parts:
        part.decode()  # whole characters only
    assert (b"".join(parts) + detokenizer.flush()).decode() == TOKENIZER.decode(ids, skip_special_tokens=skip)


@given(text=st.text(max_size=30))
def test_a_character_comes_with_the_token_that_completes_it(text: str) -> None:
    detokenizer = Detokenizer(TEXTS[True])
    ids = TOKENIZER.encode(text).ids
    assert b"".join([detokenizer.take(token) for token in ids]).decode() == text
    assert detokenizer.num_pending == 0
    assert detokenizer.flush() == b""


@given(text=st.text(alphabet="Hello world é the 🙂 ", max_size=20), at_start=st.sampled_from(["", " ", "  "]))
def test_pieces_with_byte_fallback_are_decoded_as_the_library_does(text: str, at_start: str) -> None:
    ids = piece_ids(at_start + text)
    assert detokenize(PIECE_TEXTS, ids) == PIECES.decode(ids)
    special = PIECES.token_to_id("</s>")
    assert detokenize(PIECE_TEXTS, [special, *ids, special]) == PIECES.decode([special, *ids, special])


@given(
    prompt=st.text(alphabet="Hello the ", max_size=10),
    answer=st.text(alphabet="Hello world é 🙂 ", max_size=20),
    with_special=st.booleans(),
)
def test_pieces_that_go_on_from_a_prompt_keep_their_spaces(prompt: str, answer: str, with_special: bool) -> None:
    """What the decoder takes off the start of a text, it takes off the prompt."""
    special = [PIECES.token_to_id("</s>")] if with_special else []
    before = special + piece_ids(prompt)
    after = piece_ids(answer)
    detokenizer = Detokenizer(PIECE_TEXTS, after=before)
    text = b"".join([detokenizer.take(token) for token in after]) + detokenizer.flush()
    assert PIECES.decode(before) + text.decode() == PIECES.decode(before + after)


@given(ids=any_ids, cut=st.integers(0, 40))
def test_bytes_that_go_on_from_a_prompt_complete_its_character(ids: list[int], cut: int) -> None:
    before, after = ids[:cut], ids[cut:]
    prompt = Detokenizer(TEXTS[True])
    told = b"".join([prompt.take(token) for token in before])
    detokenizer = Detokenizer(TEXTS[True], after=before)
    assert detokenizer.num_pending == prompt.num_pending
    told += b"".join([detokenizer.take(token) for token in after])
    assert (told + detokenizer.flush()).decode() == TOKENIZER.decode(ids)


def test_a_prompt_of_special_tokens_alone_leaves_the_start_to_the_output() -> None:
    ids = [PIECES.token_to_id(piece) for piece in ("▁Hello", "▁the")]
    for prompt, expected in (([], "Hello the"), ([PIECES.token_to_id("</s>")], "Hello the"), (ids, " Hello the")):
        detokenizer = Detokenizer(PIECE_TEXTS, after=prompt)
        assert b"".join([detokenizer.take(token) for token in ids]).decode() == expected


def test_ids_beyond_the_tokenizer_have_no_text() -> None:
    assert detokenize(TEXTS[True], [NUM_TOKENS, VOCAB_SIZE - 1]) == ""


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        decoders.WordPiece(),
        decoders.CTC(),
        decoders.Metaspace(),
        decoders.Strip(" ", 1, 0),
        decoders.Sequence([decoders.ByteFallback(), decoders.Replace("▁", " ")]),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 1)]),
    ],
)
def test_a_decoder_of_another_family_is_refused_at_the_start(decoder: object) -> None:
    definition = json.loads(TOKENIZER.to_str())
    definition["decoder"] = None if decoder is None else json.loads(decoder.__getstate__())  # type: ignore[attr-defined]
    with pytest.raises(UnsupportedTokenizerError):
        TokenBytes(json.dumps(definition).encode())


def first_stop(text: str, stops: list[str]) -> tuple[int, int, str] | None:
    """By definition: the match that ends first, of those the longest. Positions in bytes."""
    data = text.encode()
    for end in range(1, len(data) + 1):
        matching = [stop for stop in stops if data[:end].endswith(stop.encode())]
        if matching:
            longest = max(matching, key=lambda stop: len(stop.encode()))
            return end - len(longest.encode()), end, longest
    return None


stop_lists = st.lists(st.text(alphabet="abé ", min_size=1, max_size=5), min_size=1, max_size=4, unique=True)

ids_near_stops = st.one_of(any_ids, st.text(alphabet="abé ", max_size=20).map(lambda text: TOKENIZER.encode(text).ids))


@settings(max_examples=400)
@given(
    ids=ids_near_stops,
    stops=stop_lists,
    include=st.booleans(),
)
def test_text_up_to_a_stop_string_whatever_the_tokens(ids: list[int], stops: list[str], include: bool) -> None:
    output = OutputText(Detokenizer(TEXTS[True]), StopAutomaton(stops), include)
    entries = []
    taken = 0
    for token in ids:
        taken += 1
        entries += output.take(token)
        if output.matched is not None:
            break
    if output.matched is None:
        entries += output.flush()
    whole = TOKENIZER.decode(ids)
    found = first_stop(whole, stops)
    expected = whole if found is None else whole.encode()[: found[1] if include else found[0]].decode()
    assert b"".join(text for _, text in entries).decode() == expected
    assert output.matched == (None if found is None else found[2])
    assert [token for token, _ in entries] == ids[:taken]  # each leaves once, in order, cut or not


@given(ids=any_ids, stops=stop_lists)
def test_nothing_leaves_that_a_later_token_could_take_back(ids: list[int], stops: list[str]) -> None:
    output = OutputText(Detokenizer(TEXTS[True]), StopAutomaton(stops), include_stop=False)
    left = b""
    for count, token in enumerate(ids, start=1):
        left += b"".join(text for _, text in output.take(token))
        if output.matched is not None:
            return
        complete = TOKENIZER.decode(ids[:count]).encode()
        longest = max(
            (n for stop in stops for n in range(len(stop.encode())) if complete.endswith(stop.encode()[:n])), default=0
        )
        assert complete.startswith(left)
        assert len(left) <= len(complete) - longest or "�" in complete.decode()


def pieces_of(ids: list[int]) -> list[bytes]:
    """What each token completes."""
    detokenizer = Detokenizer(TEXTS[True])
    return [detokenizer.take(token) for token in ids]


@given(ids=ids_near_stops, stops=stop_lists, min_tokens=st.integers(0, 12), include=st.booleans())
def test_a_stop_string_that_is_complete_too_early_ends_nothing(
    ids: list[int], stops: list[str], min_tokens: int, include: bool
) -> None:
    pieces = pieces_of(ids)
    whole, too_early = b"".join(pieces), len(b"".join(pieces[:min_tokens]))
    ends = [
        (end, -len(stop.encode()), stop)
        for stop in stops
        for end in range(too_early + 1, len(whole) + 1)
        if whole[:end].endswith(stop.encode())
    ]
    output = OutputText(Detokenizer(TEXTS[True]), StopAutomaton(stops), include, min_tokens)
    left = b""
    for token in ids:
        left += b"".join(text for _, text in output.take(token))
        if output.matched is not None:
            break
    if not ends:
        assert output.matched is None
        flushed = b"".join(text for _, text in output.flush())
        if output.matched is None:
            assert (left + flushed).startswith(whole)
    else:
        end, minus_length, stop = min(ends)
        assert output.matched == stop
        assert left == whole[: end if include else end + minus_length]


@given(ids=ids_near_stops, stops=stop_lists, min_tokens=st.integers(0, 6))
def test_the_longest_possible_match_is_held_back_and_no_token_before_it(
    ids: list[int], stops: list[str], min_tokens: int
) -> None:
    """A token leaves whole, so what is held begins with the token in which the first open byte stands."""
    output, num_left = OutputText(Detokenizer(TEXTS[True]), StopAutomaton(stops), False, min_tokens), 0
    detokenizer, pieces = Detokenizer(TEXTS[True]), []
    for count, token in enumerate(ids, start=1):
        pieces.append(detokenizer.take(token))
        num_left += len(output.take(token))
        if output.matched is not None:
            return
        text = b"".join(pieces)
        open_bytes = max(n for stop in stops for n in range(len(stop.encode())) if text.endswith(stop.encode()[:n]))
        if detokenizer.num_pending:
            continue  # the last characters' own tokens wait as well
        num_open = 0
        while num_open < count and len(b"".join(pieces[count - num_open :])) < open_bytes:
            num_open += 1
        assert num_left == count - num_open


def test_text_that_no_stop_string_can_begin_is_not_held_back() -> None:
    output = OutputText(Detokenizer(TEXTS[True]), StopAutomaton(["STOP"]), include_stop=False)
    released = [output.take(token) for token in TOKENIZER.encode("hello SO").ids]
    assert b"".join(text for entries in released for _, text in entries).decode() == "hello SO"


def test_the_scanner_reads_each_byte_once() -> None:
    """The worst stop strings of the contract cost a small, bounded number of steps per byte."""
    stops = ["a" * n + "b" for n in range(240, 256)]
    automaton = StopAutomaton(stops)
    steps = 0
    original = automaton.goto

    class Counting(list):  # type: ignore[type-arg]
        def __getitem__(self, index: object) -> object:
            nonlocal steps
            steps += 1
            return original[index]  # type: ignore[call-overload]

    automaton.goto = Counting(original)
    scanner = StopScanner(automaton)
    text = b"a" * 5000
    assert scanner.scan(text) is None
    assert steps <= 2 * len(text) + len(original)


def test_a_definition_that_is_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedTokenizerError):
        TokenBytes(b"{")


def test_text_that_waits_to_be_tokenized_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "_MAX_WAITING_CHARACTERS", 5000)
    free = threading.Event()

    async def test() -> None:
        with ThreadPoolExecutor(1) as threads:
            spec = make_spec(tmp_path)
            assert spec.tokenizer_file is not None
            tokenizer = TextTokenizer(spec.tokenizer_file, spec, threads)
            threads.submit(free.wait, 20)
            longest = asyncio.create_task(tokenizer.encode("x" * 9000, add_special_tokens=False))  # alone, it may wait
            await asyncio.sleep(0)
            with pytest.raises(ResourceExhausted, match="9000 characters wait"):
                await tokenizer.encode("x" * 1001, add_special_tokens=False)
            assert await tokenizer.encode("short", add_special_tokens=False)
            longest.cancel()
            await asyncio.wait([longest])
            following = asyncio.create_task(tokenizer.encode("x" * 3000, add_special_tokens=False))
            await asyncio.sleep(0)
            free.set()
            assert await following

    asyncio.run(test())
