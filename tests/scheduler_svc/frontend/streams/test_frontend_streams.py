"""Streams from the engine's tokens to the client's messages, over real gRPC."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import pytest
import zmq
from google.rpc import error_details_pb2
from support.frontend_world import (
    FrontendUnderTest,
    detail,
    failure,
    ids_request,
    running_frontend,
    unary,
    until,
    violated_field,
)
from support.scripted_engine import LIMIT_S
from support.tiny_tokenizer import make_spec, make_tokenizer
from tokenizers import Tokenizer, decoders, models

from pagewire.v1 import admin_pb2
from pagewire.v1 import generation_pb2 as pb
from pagewire.wire.columns import pack, unpack
from pagewire.wire.control import EngineRestarted
from pagewire.wire.launch import CurveKeys
from pagewire.wire.model import ModelSpec
from pagewire.wire.plan import NOT_NUMBERS
from pagewire.wire.requests import (
    Abort,
    EngineInfo,
    EngineState,
    FinishKind,
    Register,
    Rejected,
    RejectKind,
    SeqFinished,
    SeqStarted,
    Submit,
    TokenBatch,
)

Run = Callable[[Coroutine[Any, Any, None]], None]
NONSENSE = EngineInfo(EngineState.READY, -1, 2**40, 2**40, -1, 2**63, "", "", {}, 2**40)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


async def read(call: Any) -> Any:
    async with asyncio.timeout(LIMIT_S):
        message = await call.read()
    assert message is not grpc.aio.EOF
    return message


async def read_all(call: Any) -> list[Any]:
    messages = []
    async with asyncio.timeout(LIMIT_S):
        while (message := await call.read()) is not grpc.aio.EOF:
            messages.append(message)
    return messages


def text_of(messages: list[Any], output: int = 0) -> str:
    deltas = [m.delta for m in messages if m.WhichOneof("event") == "delta" and m.delta.output == output]
    return b"".join(token.text for delta in deltas for token in delta.tokens).decode()


def ids_of(messages: list[Any], output: int = 0) -> list[int]:
    deltas = [m.delta for m in messages if m.WhichOneof("event") == "delta" and m.delta.output == output]
    return [token.id for delta in deltas for token in delta.tokens]


def test_an_output_goes_on_where_the_prompts_text_ends(tmp_path: Path, run: Run) -> None:
    """SentencePiece: the space that a decoder takes off the start of a text is not taken off an output."""
    pieces = ["<s>", *[f"<0x{byte:02X}>" for byte in range(256)], "▁hello", "▁world", "▁there"]
    pieced = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    pieced.decoder = decoders.Sequence(steps)
    pieced.add_special_tokens(["<s>"])
    spec = make_spec(tmp_path)
    pieced.save(str(spec.tokenizer_file))
    hello, world_, there = (pieced.token_to_id(piece) for piece in ("▁hello", "▁world", "▁there"))

    async def test() -> None:
        async with running_frontend(spec) as world:
            for prompt, answer, text in [
                ((0, hello), (world_, there), " world there"),
                ((0,), (hello, world_), "hello world"),
                ((hello, 1 + 0xC3), (1 + 0xA9, world_), "é world"),
            ]:
                call = world.inference.StreamGenerate(ids_request(*prompt))
                submit = await world.engine.act(Submit)
                await world.engine.start(submit.handle)
                for token in answer:
                    await world.engine.step([(submit.handle, token)])
                await world.engine.step([], [(submit.handle, FinishKind.LENGTH)])
                assert text_of(await read_all(call)) == text

    run(test())


def test_a_stream_is_started_deltas_finished_usage(spec: ModelSpec, tokenizer: Tokenizer, run: Run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            ids = tokenizer.encode("Grüße 🙂 hello").ids
            end = spec.eos_token_ids[0]
            call = world.inference.StreamGenerate(ids_request(5, 6, 7, request_id="mine"))
            assert ("pagewire-request-id", "mine") in list(await call.initial_metadata())
            submit = await world.engine.act(Submit)
            assert unpack(submit.prompt).tolist() == [5, 6, 7]
            await world.engine.start(submit.handle, cached_tokens=2, queue_s=0.25, forecast_s=0.75)
            for token in ids:
                await world.engine.step([(submit.handle, token)])
            await world.engine.step([(submit.handle, end)], [(submit.handle, FinishKind.EOS)])
            messages = await read_all(call)
            assert [m.WhichOneof("event") for m in (messages[0], messages[-2], messages[-1])] == [
                "started",
                "finished",
                "usage",
            ]
            assert all(m.WhichOneof("event") == "delta" for m in messages[1:-2])
            started = messages[0].started
            assert (started.request_id, started.seed, started.prompt_tokens, started.cached_tokens) == (
                "mine",
                12345,
                3,
                2,
            )
            assert started.predicted_time_to_first_token.ToMilliseconds() == 750
            assert text_of(messages) == "Grüße 🙂 hello"
            assert ids_of(messages) == [*ids, end]
            for message in messages[1:-2]:
                for token in message.delta.tokens:
                    token.text.decode()  # whole characters only
            finished = messages[-2].finished
            assert (finished.reason, finished.stop_token_id) == (pb.FINISH_REASON_EOS, end)
            usage = messages[-1].usage
            assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (3, 2, len(ids) + 1)
            assert usage.timings.queue.ToMilliseconds() == 250
            assert not world.engine.aborted

    run(test())


def test_generate_joins_the_same_stream(spec: ModelSpec, tokenizer: Tokenizer, run: Run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            call = world.inference.Generate(unary(ids_request(n=2, sampling=pb.Sampling(seed=2**64 - 1))))
            first, second = await world.engine.act(Submit), await world.engine.act(Submit)
            assert (first.sampling.seed, second.sampling.seed) == (2**64 - 1, 0)
            assert first.request_id == second.request_id == "drawn-0"
            await world.engine.answer(first.handle, tokenizer.encode("hello").ids, FinishKind.LENGTH)
            await world.engine.answer(second.handle, tokenizer.encode("world").ids, FinishKind.STOP_TOKEN)
            answer = await call
            assert [output.text for output in answer.outputs] == ["hello", "world"]
            assert [output.finished.output for output in answer.outputs] == [0, 1]
            assert answer.outputs[0].finished.reason == pb.FINISH_REASON_LENGTH
            assert answer.outputs[0].finished.WhichOneof("matched") is None
            assert answer.outputs[1].finished.stop_token_id == tokenizer.encode("world").ids[-1]
            assert answer.started.seed == 2**64 - 1
            assert answer.usage.completion_tokens == sum(len(output.tokens) for output in answer.outputs)

    run(test())


def test_what_was_not_asked_for_is_not_sent(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            call = world.inference.Generate(unary(ids_request(output=pb.Output(text=False, token_ids=False))))
            submit = await world.engine.act(Submit)
            await world.engine.answer(submit.handle, [40, 41], FinishKind.LENGTH)
            (output,) = (await call).outputs
            assert not output.HasField("text")
            assert len(output.tokens) == 2
            assert not any(token.HasField("text") or token.HasField("id") for token in output.tokens)

    run(test())


def test_a_stop_string_over_several_tokens_ends_the_output_and_aborts(
    spec: ModelSpec, tokenizer: Tokenizer, run: Run
) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            stopping = pb.Stopping(stop_strings=["STOP"], max_tokens=50)
            call = world.inference.StreamGenerate(ids_request(stopping=stopping))
            submit = await world.engine.act(Submit)
            ids = [tokenizer.token_to_id(c) for c in "aSTO"] + [tokenizer.token_to_id(c) for c in "SSTOPx"]
            await world.engine.start(submit.handle)
            for token in ids:
                await world.engine.step([(submit.handle, token)])
            messages = await read_all(call)
            assert text_of(messages) == "aSTOS"
            assert ids_of(messages) == ids[:-1]
            assert messages[-2].finished.reason == pb.FINISH_REASON_STOP_STRING
            assert messages[-2].finished.stop_string == "STOP"
            assert messages[-1].usage.completion_tokens == len(ids) - 1
            abort = await world.engine.act(Abort)
            assert unpack(abort.handles).tolist() == [submit.handle]

    run(test())


def test_an_incomplete_character_becomes_a_replacement_at_the_last_token(
    spec: ModelSpec, tokenizer: Tokenizer, run: Run
) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            ids = tokenizer.encode("ok🙂").ids[:-1]
            call = world.inference.Generate(unary(ids_request()))
            submit = await world.engine.act(Submit)
            await world.engine.answer(submit.handle, ids, FinishKind.LENGTH)
            (output,) = (await call).outputs
            assert output.text == tokenizer.decode(ids) == "ok�"
            assert output.tokens[-1].text == "�".encode()

    run(test())


@pytest.mark.parametrize("how", ["cancel", "deadline", "closed channel"])
def test_a_call_that_ends_early_aborts_its_own_sequences_at_once(spec: ModelSpec, run: Run, how: str) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            other = world.inference.StreamGenerate(ids_request(9))
            kept = await world.engine.act(Submit)
            async with grpc.aio.insecure_channel(world.ready.address) as channel:
                doomed = FrontendUnderTest(world.frontend, world.engine, world.ready, channel, channel).inference
                call = doomed.StreamGenerate(ids_request(n=3), timeout=0.3 if how == "deadline" else None)
                handles = [(await world.engine.act(Submit)).handle for _ in range(3)]
                await world.engine.start(handles[0])
                await read(call)
                if how == "cancel":
                    call.cancel()
                elif how == "closed channel":
                    await channel.close()
                abort = await world.engine.act(Abort)
                if how == "deadline":
                    assert (await failure(call)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert sorted(unpack(abort.handles).tolist()) == handles
            await world.engine.answer(kept.handle, [40])
            assert (await read_all(other))[-1].WhichOneof("event") == "usage"
            assert len(world.engine_client.sequences) == 0

    run(test())


def test_a_cancelled_unary_call_aborts_too(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            call = world.inference.Generate(unary(ids_request()))
            submit = await world.engine.act(Submit)
            call.cancel()
            assert unpack((await world.engine.act(Abort)).handles).tolist() == [submit.handle]

    run(test())


def test_tokens_that_wait_join_one_delta(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            call = world.inference.StreamGenerate(ids_request())
            submit = await world.engine.act(Submit)
            await world.engine.start(submit.handle)
            await world.engine.step([(submit.handle, 40)] * 300, [(submit.handle, FinishKind.LENGTH)])
            messages = await read_all(call)
            deltas = [m for m in messages if m.WhichOneof("event") == "delta"]
            assert [len(m.delta.tokens) for m in deltas] == [300]

    run(test())


def test_a_new_engine_continues_every_open_stream(spec: ModelSpec, tokenizer: Tokenizer, run: Run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            ids = tokenizer.encode("hello 🙂 world").ids
            cut = len(tokenizer.encode("hello ").ids) + 2  # inside the emoji
            request = ids_request(8, 9, stopping=pb.Stopping(max_tokens=40))
            request.generation.max_queue_time.FromSeconds(5)
            call = world.inference.StreamGenerate(request)
            waits = ids_request(7)
            waits.generation.max_queue_time.FromSeconds(1000)
            waiting = world.inference.StreamGenerate(waits)
            done = world.inference.StreamGenerate(ids_request(6))
            submits = {tuple(unpack(s.prompt).tolist()): s for s in [await world.engine.act(Submit) for _ in range(3)]}
            old, finished = submits[8, 9], submits[6,]
            await world.engine.answer(finished.handle, [40])
            await read_all(done)
            await world.engine.start(old.handle)
            for token in ids[:cut]:
                await world.engine.step([(old.handle, token)])
            await until(lambda: len(world.engine_client.sequences._open[old.handle].output.received) == cut)

            world.engine.state = EngineState.LOADING
            old_identity = world.engine.identity
            world.engine.restart()
            world.frontend.handle(EngineRestarted(1))
            await world.engine.act(Register)
            assert world.engine.identity != old_identity
            error = await failure(world.inference.Generate(unary(ids_request())))
            assert detail(error, error_details_pb2.ErrorInfo).reason == "LOADING"
            await world.engine.info(EngineState.READY)
            again = {tuple(unpack(s.prompt).tolist()): s for s in [await world.engine.act(Submit) for _ in range(2)]}
            new = again[8, 9]
            assert unpack(new.generated).tolist() == ids[:cut]
            assert (new.sampling, new.max_tokens, new.salt) == (old.sampling, old.max_tokens, old.salt)
            assert new.max_queue_time_s is None
            assert again[7,].generated == b""
            rest_s = again[7,].max_queue_time_s
            assert rest_s is not None
            assert 0 < rest_s < 1000, "it has waited since it came"
            # The queue of a new engine may be full for a moment: an accepted stream waits, and is not lost.
            await world.engine.reject(new.handle, RejectKind.QUEUE_FULL, retry_after_s=0.01)
            new = await world.engine.act(Submit)
            await world.engine.start(new.handle)
            for token in ids[cut:]:
                await world.engine.step([(new.handle, token)])
            await world.engine.step([], [(new.handle, FinishKind.LENGTH)])
            messages = await read_all(call)
            assert text_of(messages) == "hello 🙂 world"
            assert ids_of(messages) == ids
            assert [m.WhichOneof("event") for m in messages].count("started") == 1
            await world.engine.answer(again[7,].handle, [40])
            assert (await read_all(waiting))[-1].usage.completion_tokens == 1

    run(test())


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (RejectKind.QUEUE_FULL, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (RejectKind.QUEUE_TIMEOUT, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (RejectKind.INVALID, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_a_rejection_becomes_its_status_and_takes_the_siblings_along(
    spec: ModelSpec, run: Run, kind: RejectKind, code: grpc.StatusCode
) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            call = world.inference.StreamGenerate(ids_request(n=2))
            first, second = await world.engine.act(Submit), await world.engine.act(Submit)
            await world.engine.reject(second.handle, kind, field="stopping.max_tokens", retry_after_s=1.5)
            error = await failure(call)
            assert error.code() is code
            assert "the script says no" in (error.details() or "")
            if kind is RejectKind.INVALID:
                assert violated_field(error) == "generation.stopping.max_tokens"
            else:
                assert detail(error, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 1500
            assert unpack((await world.engine.act(Abort)).handles).tolist() == [first.handle]

    run(test())


def test_a_sequence_that_the_model_failed_ends_with_internal_alone(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            call = world.inference.StreamGenerate(ids_request())
            submit = await world.engine.act(Submit)
            await world.engine.start(submit.handle)
            ended = SeqFinished(submit.handle, FinishKind.FAILED, reason=NOT_NUMBERS)
            await world.engine.send(TokenBatch([], b"", b"", [ended]))
            error = await failure(call)
            assert error.code() is grpc.StatusCode.INTERNAL
            assert error.details() == NOT_NUMBERS
            after = world.inference.Generate(unary(ids_request()))
            await world.engine.answer((await world.engine.act(Submit)).handle, [40])
            assert (await after).usage.completion_tokens == 1

    run(test())


def test_a_sequence_that_memory_no_longer_holds_ends_with_the_limit_alone(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            call = world.inference.StreamGenerate(ids_request())
            submit = await world.engine.act(Submit)
            await world.engine.start(submit.handle)
            token = pack([submit.handle]), pack([40])
            await world.engine.send(TokenBatch([], *token, [SeqFinished(submit.handle, FinishKind.NO_ROOM, 41)]))
            error = await failure(call)
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "41 tokens" in (error.details() or "")
            after = world.inference.Generate(unary(ids_request()))
            await world.engine.answer((await world.engine.act(Submit)).handle, [40])
            assert (await after).usage.completion_tokens == 1

    run(test())


def test_a_stream_that_a_smaller_engine_refuses_has_no_wrong_argument(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            call = world.inference.StreamGenerate(ids_request())
            await world.engine.act(Submit)
            world.engine.restart()
            world.frontend.handle(EngineRestarted(1))
            await world.engine.act(Register)
            again = await world.engine.act(Submit)
            await world.engine.reject(again.handle, RejectKind.INVALID, field="stopping.max_tokens")
            assert (await failure(call)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    run(test())


def test_an_engine_that_took_somebody_else_for_the_frontend_is_told_again(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        async with running_frontend(spec, engine_timeout_s=1.0) as world:
            world.engine.is_mute = True
            world.engine.restart()
            world.frontend.handle(EngineRestarted(1))
            await world.engine.act(Register)
            world.engine.is_mute = False
            await world.engine.act(Register)
            call = world.inference.StreamGenerate(ids_request(), wait_for_ready=True)
            await world.engine.answer((await world.engine.act(Submit)).handle, [40])
            assert ids_of(await read_all(call)) == [40]

    run(test())


def test_an_operators_abort_is_an_end_and_not_an_error(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            call = world.inference.StreamGenerate(ids_request())
            submit = await world.engine.act(Submit)
            await world.engine.start(submit.handle)
            await world.engine.step([(submit.handle, 40)])
            await world.engine.step([], [(submit.handle, FinishKind.ABORTED)])
            messages = await read_all(call)
            assert messages[-2].finished.reason == pb.FINISH_REASON_ABORTED
            assert ids_of(messages) == [40]

    run(test())


def test_an_abort_of_a_request_that_never_ran_is_a_whole_stream_too(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            call = world.inference.StreamGenerate(ids_request(n=2, request_id="mine"))
            for submit in [await world.engine.act(Submit) for _ in range(2)]:
                await world.engine.step([], [(submit.handle, FinishKind.ABORTED)])
            messages = await read_all(call)
            assert [m.WhichOneof("event") for m in messages] == ["started", "finished", "finished", "usage"]
            assert messages[0].started.request_id == "mine"

    run(test())


def test_the_limit_on_queueing_ends_with_the_first_step_of_any_output(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            request = ids_request(n=2)
            request.generation.max_queue_time.FromSeconds(5)
            call = world.inference.StreamGenerate(request)
            first, second = await world.engine.act(Submit), await world.engine.act(Submit)
            assert second.max_queue_time_s == 5
            await world.engine.start(first.handle)
            await world.engine.reject(second.handle, RejectKind.QUEUE_TIMEOUT)
            again = await world.engine.act(Submit)
            assert (again.handle, again.sampling, again.max_queue_time_s) == (second.handle, second.sampling, None)
            # Its place in the queue was promised to it.
            await world.engine.reject(again.handle, RejectKind.QUEUE_FULL, retry_after_s=0.01)
            await world.engine.act(Submit)
            await world.engine.answer(second.handle, [41])
            await world.engine.step([(first.handle, 40)], [(first.handle, FinishKind.EOS)])
            messages = await read_all(call)
            assert (ids_of(messages, 0), ids_of(messages, 1)) == ([40], [41])
            assert messages[-1].usage.completion_tokens == 2

    run(test())


def test_a_stream_that_waits_to_be_submitted_again_is_submitted_to_a_new_engine_once(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            timers: list[Callable[[], None]] = []
            world.engine_client.sequences._call_later = lambda _delay_s, retry: timers.append(retry)
            call = world.inference.StreamGenerate(ids_request())
            await world.engine.act(Submit)
            for state in (EngineState.READY, EngineState.LOADING):
                world.engine.state = state
                world.engine.restart()
                world.frontend.handle(EngineRestarted(1))
                await world.engine.act(Register)
                if state is EngineState.READY:
                    await world.engine.reject((await world.engine.act(Submit)).handle, RejectKind.QUEUE_FULL)
                    await until(lambda: timers)
            timers[0]()  # too early for an engine that is loading
            await world.engine.info(EngineState.READY)
            await world.engine.act(Submit)
            timers[0]()
            call.cancel()
            await world.engine.act(Abort)

    run(test())


def test_an_engine_that_gave_the_frontend_up_without_a_word_gets_its_streams_again(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            call = world.inference.StreamGenerate(ids_request())
            submit = await world.engine.act(Submit)
            await world.engine.start(submit.handle)
            await world.engine.step([(submit.handle, 40)])
            identity = world.engine.identity
            begun = [await read(call), await read(call)]  # so the frontend has heard all that the engine said
            world.clock.advance(31)  # engine_timeout_s is 30
            await world.engine.act(Register)
            assert world.engine.identity != identity
            again = await world.engine.act(Submit)
            assert unpack(again.generated).tolist() == [40]
            await world.engine.step([(submit.handle, 41)], [(submit.handle, FinishKind.EOS)])
            assert ids_of([*begun, *await read_all(call)]) == [40, 41]

    run(test())


def test_an_order_to_an_engine_without_streams_is_refused_rather_than_answered_with_none(
    spec: ModelSpec, run: Run
) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            call = world.inference.StreamGenerate(ids_request(request_id="mine"))
            await world.engine.act(Submit)
            world.engine.state = EngineState.LOADING
            world.engine.restart()
            world.frontend.handle(EngineRestarted(1))
            await world.engine.act(Register)
            error = await failure(world.admin.Abort(admin_pb2.AbortRequest(request_id="mine")))
            assert detail(error, error_details_pb2.ErrorInfo).reason == "ENGINE_LOST"
            call.cancel()

    run(test())


def test_frames_that_are_no_messages_are_counted_and_dropped(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            call = world.inference.StreamGenerate(ids_request())
            submit = await world.engine.act(Submit)
            await world.engine.start(submit.handle)
            await world.engine.send_raw(b"\xc1garbage")
            await world.engine.send_raw(b"\x92\xa1\xff\x01")  # its tag is no UTF-8
            torn = TokenBatch([], pack([submit.handle]), pack([40, 41]), [])
            late = TokenBatch([SeqStarted(submit.handle, 0, float("nan"))], b"", b"", [])
            for batch in (torn, late, Rejected(2**40, RejectKind.INVALID, "", "", None), NONSENSE):
                await world.engine.send(batch)
            await world.engine.send_raw(b"two", b"frames")
            await world.engine.step([(submit.handle, 384)])  # one more than there are logits
            await world.engine.answer(submit.handle, [40])
            assert ids_of(await read_all(call)) == [40]
            assert world.engine_client.dropped_frames == 8

    run(test())


def test_the_link_speaks_curve_where_the_endpoint_has_keys(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        (engine_public, engine_secret), (own_public, own_secret) = zmq.curve_keypair(), zmq.curve_keypair()
        keys = CurveKeys(
            server_public=engine_public.decode(), own_public=own_public.decode(), own_secret=own_secret.decode()
        )
        async with running_frontend(spec, curve=keys, curve_secret=engine_secret) as world:
            call = world.inference.Generate(unary(ids_request()))
            await world.engine.answer((await world.engine.act(Submit)).handle, [40])
            assert (await call).usage.completion_tokens == 1

    run(test())


def test_a_model_without_a_tokenizer_serves_token_ids(run: Run, tmp_path: Any) -> None:
    async def test() -> None:
        async with running_frontend(make_spec(tmp_path, with_text=False)) as world:
            call = world.inference.Generate(unary(ids_request()))
            await world.engine.answer((await world.engine.act(Submit)).handle, [40, 383], FinishKind.LENGTH)
            (output,) = (await call).outputs
            assert [token.id for token in output.tokens] == [40, 383]
            assert not output.HasField("text")
            text_prompt = ids_request()
            text_prompt.generation.prompt.text = "hello"
            for request, field in [
                (ids_request(output=pb.Output(text=True)), "generation.output.text"),
                (ids_request(stopping=pb.Stopping(stop_strings=["x"])), "generation.stopping.stop_strings"),
                (text_prompt, "generation.prompt.text"),
            ]:
                assert violated_field(await failure(world.inference.Generate(unary(request)))) == field

    run(test())
