"""Parts on their way from tokens to messages, however slowly a client reads and wherever a stop string falls.

Joined, they are what the whole text says."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.tiny_tokenizer import make_spec, make_tokenizer
from tokenizers import AddedToken, Tokenizer

from pagewire.scheduler_svc.frontend.chat.form import AnswerForm
from pagewire.scheduler_svc.frontend.chat.reader import AnswerReader
from pagewire.scheduler_svc.frontend.rpc.whole_answer import whole_answer
from pagewire.scheduler_svc.frontend.streams.output import Output
from pagewire.scheduler_svc.frontend.streams.parts import AnswerParts, CallIds, join_parts
from pagewire.scheduler_svc.frontend.streams.sequences import SequenceTable
from pagewire.scheduler_svc.frontend.streams.stream import RequestStream, StreamSettings
from pagewire.scheduler_svc.frontend.text.chat_format import (
    ChatFormat,
    ReasoningFormat,
    ReasoningStart,
    ToolCallFormat,
)
from pagewire.scheduler_svc.frontend.text.output_text import OutputText
from pagewire.scheduler_svc.frontend.text.stop_strings import StopAutomaton
from pagewire.scheduler_svc.frontend.text.tokenizer import TextTokenizer
from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2
from pagewire.wire.columns import pack
from pagewire.wire.requests import FinishKind, SeqFinished, SeqStarted, Submit
from pagewire.wire.sampling import SamplingParams

Run = Callable[[Coroutine[Any, Any, None]], None]
FORMAT = ChatFormat(ReasoningFormat.THINK, ToolCallFormat.MISTRAL)
FORM = AnswerForm(format=FORMAT, reasoning=ReasoningStart.MAY_BEGIN, tools={"f": {}})
CALL = '[TOOL_CALLS][{"name": "f", "arguments": {"q": "Köln 🙂"}}]'
PIECES = ["<think>", "Hm 🙂", "</think>", "\n\n", "Yes", " and", CALL, CALL[:-1], CALL[:40], "STOP", "ST", "]", "é"]
PROMPT = [1, 2, 3]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, TextTokenizer]:
    """Every byte is a token, and one marker is a special token, as it is in Mistral's models."""
    directory = tmp_path_factory.mktemp("tokenizer")
    spec = make_spec(directory)
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens([AddedToken("[TOOL_CALLS]", special=True)])
    tokenizer.save(str(directory / "tokenizer.json"))
    with ThreadPoolExecutor(1) as threads:
        return tokenizer, TextTokenizer(str(directory / "tokenizer.json"), spec, threads)


def submission(handle: int) -> Submit:
    return Submit(
        handle=handle,
        request_id="r",
        prompt=pack(PROMPT),
        generated=b"",
        sampling=SamplingParams(seed=7),
        max_tokens=1000,
        stop_token_ids=[],
        ignore_eos=False,
        priority=0,
        salt=b"",
        max_queue_time_s=None,
    )


def read_whole(text: str, submit: Submit) -> inference_pb2.Completion:
    """What the text says, read at once."""
    reader = AnswerReader(FORM)
    delta, whole = pb.Delta(), inference_pb2.Completion()
    AnswerParts(reader, submit).put([*reader.take(text), *reader.end()], delta.parts)
    join_parts(delta.parts, whole)
    return whole


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), min_size=1, max_size=3),
    reads=st.lists(st.integers(0, 6), max_size=60),
    has_stop=st.booleans(),
    is_collected=st.booleans(),
)
def test_the_parts_of_all_messages_are_what_the_whole_text_says(
    tokenizer: tuple[Tokenizer, TextTokenizer],
    texts: list[str],
    reads: list[int],
    has_stop: bool,
    is_collected: bool,
) -> None:
    library, ours = tokenizer

    async def test() -> None:
        settings = StreamSettings(
            request_id="r",
            seed=7,
            num_prompt_tokens=3,
            want_token_ids=True,
            want_text=True,
            reader=None,
        )
        table = SequenceTable(lambda _: None, lambda _delay_s, _callback: None, lambda: 0.0, 1)
        stream = RequestStream(settings, lambda: 0.0, table)
        stops = StopAutomaton(("STOP",)) if has_stop else None
        for index in range(len(texts)):
            detokenizer = ours.detokenizer(skip_special_tokens=True, prompt=PROMPT, shown=FORMAT.markers)
            submit = submission(index + 1)
            text = OutputText(detokenizer, stops, False)
            stream.outputs.append(Output(index, submit, text, None, AnswerParts(AnswerReader(FORM), submit)))
        messages: list[inference_pb2.StreamGenerateResponse] = []
        pace = iter(reads)
        for output, text in zip(stream.outputs, texts, strict=True):
            stream.started(output, SeqStarted(output.handle, 0, 0.0))
            for token in library.encode(text).ids:
                if not output.is_finished:
                    stream.take(output, token, 0.0)
                if not is_collected:
                    messages += [await stream.next() for _ in range(min(next(pace, 0), len(stream._queue.all())))]  # type: ignore[misc]
            if not output.is_finished:
                stream.finish(output, SeqFinished(output.handle, FinishKind.LENGTH), 0.0)
        if is_collected:
            messages = await stream.collect()
        else:
            while (message := await stream.next()) is not None:
                messages.append(message)
        answer = whole_answer(messages, len(texts), want_text=True, has_parts=stream.has_parts)
        for index, (completion, text) in enumerate(zip(answer.outputs, texts, strict=True)):
            said = text.partition("STOP")[0] if has_stop else text
            assert completion.text == said
            expected = read_whole(said, stream.outputs[index].submit)
            assert completion.message == expected.message
            assert completion.malformed_calls == expected.malformed_calls
        kinds = [message.WhichOneof("event") for message in messages]
        assert kinds[0] == "started"
        assert kinds[-1] == "usage"
        assert kinds.count("finished") == len(texts)
        for message in messages:
            if message.HasField("delta"):
                assert message.delta.tokens or message.delta.parts

    asyncio.run(test())


def test_a_call_s_id_is_its_place_s() -> None:
    first = submission(1)
    assert CallIds(first).of(0) == CallIds(submission(2)).of(0)
    longer = msgspec.structs.replace(first, prompt=pack([*PROMPT, 4]))
    other_seed = msgspec.structs.replace(first, sampling=SamplingParams(seed=8))
    others = [CallIds(first).of(1), CallIds(longer).of(0), CallIds(other_seed).of(0)]
    assert len({CallIds(first).of(0), *others}) == 4
    assert all(len(each) == 9 and each.isalnum() and each.isascii() for each in others)


def test_special_tokens_that_are_sent_are_in_no_part(tokenizer: tuple[Tokenizer, TextTokenizer]) -> None:
    library, ours = tokenizer
    hidden = ours.special_ids(FORMAT.markers)
    parts = AnswerParts(AnswerReader(FORM), submission(1), hidden)
    delta = pb.Delta()
    sent = ours.detokenizer(skip_special_tokens=False, prompt=[])
    for token in [*library.encode(f"Yes{CALL}").ids, library.token_to_id("<|im_end|>")]:
        parts.take(token, sent.take(token), delta.parts)
    parts.put(parts.end(), delta.parts)
    assert [part.WhichOneof("kind") for part in delta.parts] == ["content", "tool_call"]
    assert delta.parts[0].content == "Yes"


def test_markers_that_are_special_tokens_stay_in_a_chat_s_text(tokenizer: tuple[Tokenizer, TextTokenizer]) -> None:
    library, ours = tokenizer
    ids = [*library.encode("a[TOOL_CALLS]b").ids, library.token_to_id("<|im_end|>")]
    shown = ours.detokenizer(skip_special_tokens=True, prompt=[], shown=FORMAT.markers)
    assert b"".join(map(shown.take, ids)) == b"a[TOOL_CALLS]b"
    hidden = ours.detokenizer(skip_special_tokens=True, prompt=[])
    assert b"".join(map(hidden.take, ids)) == b"ab"


def test_a_part_that_is_long_is_joined_by_no_more() -> None:
    """Each token that joins a part copies it: what a stream costs must not grow with the square of a delta."""
    parts, delta = AnswerParts(AnswerReader(FORM), submission(1)), pb.Delta()
    for _ in range(5000):
        parts.take(1, b"ab ", delta.parts)
    sizes = [len(part.content) for part in delta.parts]
    assert max(sizes) <= 1024 + 3
    assert len(sizes) == -(-5000 * 3 // 1026)
    arguments = pb.Delta()
    calls = AnswerParts(AnswerReader(FORM), submission(1))
    for text in ['[TOOL_CALLS][{"name": "f", "arguments": {"q": "', *["x" * 100] * 50, '"}}]']:
        calls.take(1, text.encode(), arguments.parts)
    calls.put(calls.end(), arguments.parts)
    assert max(len(part.tool_call.arguments) for part in arguments.parts) <= 1124
    whole = inference_pb2.Completion()
    join_parts(arguments.parts, whole)
    assert whole.message.tool_calls[0].arguments == '{"q": "' + "x" * 5000 + '"}'
