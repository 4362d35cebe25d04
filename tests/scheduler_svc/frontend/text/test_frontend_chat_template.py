"""Chat templates: what transformers renders, within limits that hold."""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import psutil
import pytest
from support.frontend_world import failure, running_frontend, unary, violated_field
from support.tiny_tokenizer import make_spec, make_tokenizer

from pagewire.scheduler_svc.frontend.errors import ResourceExhausted
from pagewire.scheduler_svc.frontend.text.chat_template import ChatTemplate, RenderLimits, TemplateRefusedError
from pagewire.scheduler_svc.frontend.text.helper_process import Refused
from pagewire.scheduler_svc.frontend.text.template_process import Rendered, compile_template, render
from pagewire.scheduler_svc.frontend.text.template_variables import Variables
from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2, model_pb2
from pagewire.wire.columns import unpack
from pagewire.wire.model import ModelSpec
from pagewire.wire.requests import Submit

Run = Callable[[Coroutine[Any, Any, None]], None]
MESSAGES = [{"role": "user", "content": "Grüße <b>&amp;</b>"}, {"role": "assistant", "content": "ok"}]


def rendered(source: str, **variables: Any) -> str:
    answer = render(compile_template(source), Variables(variables), 10_000)
    assert isinstance(answer, Rendered), answer
    return answer.text


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}\n  {% if m.role == 'user' %}\n<{{ m.content }}>\n  {% endif %}\n{% endfor %}\n",
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}",
        "{{ messages | tojson }} {{ messages | tojson(indent=2) }}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
        "{{ strftime_now('%Y') }}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    ],
)
def test_a_template_renders_as_transformers_renders_it(source: str) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    (theirs,), _ = utils.render_jinja_template([MESSAGES], chat_template=source, add_generation_prompt=False)
    assert rendered(source, messages=MESSAGES, tools=None, documents=None, add_generation_prompt=False) == theirs


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for i in range(100000) %}xxxxxxxxxx{% endfor %}", "limit of 10000 bytes"),
        ("{{ '\\ud800' }}", "surrogates"),
        ("{{ 1 // 0 }}", "zero"),
        ("{{ range(10**9) | list }}", "Range too big"),
    ],
)
def test_what_a_template_may_not_do_is_refused_with_the_reason(source: str, why: str) -> None:
    answer = render(compile_template(source), Variables({"messages": MESSAGES}), 10_000)
    assert isinstance(answer, Refused)
    assert why in answer.message


def test_a_rendering_that_takes_too_long_is_ended_and_the_next_one_works(run: Run) -> None:
    source = (
        "{% if messages == 'loop' %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
        "{% elif messages == 'memory' %}{{ ('x' * 10**9) | length }}{% endif %}done"
    )

    async def test() -> None:
        limits = RenderLimits(max_output_bytes=1000, time_limit_s=0.3, max_processes=1, max_waiting=2)
        template = ChatTemplate(source, limits)
        await template.start()
        try:
            assert (await template.render(Variables({"messages": ""}))).text == "done"
            began = time.monotonic()
            beats = 0
            looping = asyncio.create_task(template.render(Variables({"messages": "loop"})))
            while not looping.done():
                await asyncio.sleep(0.01)
                beats += 1
            assert beats > 10  # the event loop was never held
            with pytest.raises(TemplateRefusedError, match=r"longer than 0\.3 s"):
                await looping
            assert time.monotonic() - began < 5
            assert (await template.render(Variables({"messages": ""}))).text == "done"
            with pytest.raises(TemplateRefusedError, match="memory"):
                await template.render(Variables({"messages": "memory"}))
            assert (await template.render(Variables({"messages": ""}))).text == "done"

            abandoned = asyncio.create_task(template.render(Variables({"messages": ""})))
            await asyncio.sleep(0)
            abandoned.cancel()
            assert (await template.render(Variables({"messages": ""}))).text == "done"

            waiting = [asyncio.create_task(template.render(Variables({"messages": "loop"}))) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(ResourceExhausted, match="the limit is 2"):
                await template.render(Variables({"messages": ""}))
            await asyncio.gather(*waiting, return_exceptions=True)
        finally:
            await template.close()

    run(test())


def test_renderings_that_nobody_waits_for_any_more_hold_nobody_up(run: Run) -> None:
    source = (
        "{% if messages %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}x"
    )

    async def test() -> None:
        template = ChatTemplate(source, RenderLimits(max_output_bytes=10, time_limit_s=0.3, max_processes=1))
        await template.start()
        try:
            abandoned = [asyncio.create_task(template.render(Variables({"messages": "loop"}))) for _ in range(100)]
            await asyncio.sleep(0)
            for rendering in abandoned:
                rendering.cancel()
            async with asyncio.timeout(10):  # the first had begun; all of them would take 30 s
                assert (await template.render(Variables({"messages": ""}))).text == "x"
        finally:
            await template.close()

    run(test())


def test_a_renderer_ends_with_its_frontend(run: Run) -> None:
    async def test() -> None:
        template = ChatTemplate("x", RenderLimits(max_output_bytes=10))
        await template.start()
        pid = template._renderers._idle[0]._process.pid
        await template.close()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    run(test())


def test_a_template_that_does_not_compile_ends_the_start(run: Run, tmp_path: Any) -> None:
    async def test() -> None:
        with pytest.raises(TemplateRefusedError, match="does not compile"):
            async with running_frontend(make_spec(tmp_path, template="{% if %}")):
                pass

    run(test())


def chat_request(*contents: str, **fields: Any) -> inference_pb2.StreamGenerateRequest:
    messages = [pb.ChatMessage(role=pb.CHAT_ROLE_USER, content=content) for content in contents]
    prompt = pb.Prompt(chat=pb.Chat(messages=messages, **fields))
    return inference_pb2.StreamGenerateRequest(generation=pb.Generation(prompt=prompt))


def test_chat_reaches_the_engine_as_the_templates_text(spec: ModelSpec, run: Run) -> None:
    async def test() -> None:
        async with running_frontend(spec) as world:
            text = "<|im_start|>user\nhello 🙂<|im_end|>\n<|im_start|>assistant\n"
            call = world.inference.StreamGenerate(chat_request("hello 🙂"))
            submit = await world.engine.act(Submit)
            ids = make_tokenizer().encode(text, add_special_tokens=False).ids
            assert unpack(submit.prompt).tolist() == ids
            call.cancel()
            prompt = chat_request("hello 🙂").generation.prompt
            tokenized = await world.inference.Tokenize(inference_pb2.TokenizeRequest(prompt=prompt))
            assert (tokenized.text, list(tokenized.ids)) == (text, ids)
            without = chat_request("hello 🙂", add_generation_prompt=False).generation.prompt
            tokenized = await world.inference.Tokenize(inference_pb2.TokenizeRequest(prompt=without))
            assert tokenized.text == text.removesuffix("<|im_start|>assistant\n")

    run(test())


def test_messages_that_the_template_refuses_are_the_requests_fault(run: Run, tmp_path: Any) -> None:
    async def test() -> None:
        template = "{% if messages | length > 1 %}{{ raise_exception('one message only') }}{% endif %}x"
        async with running_frontend(make_spec(tmp_path, template=template)) as world:
            generate = world.inference.Generate
            error = await failure(generate(unary(chat_request("a", "b"))))
            assert violated_field(error) == "generation.prompt.chat"
            assert "one message only" in (error.details() or "")

    run(test())


def test_a_model_without_a_template_takes_no_chat(run: Run, tmp_path: Any) -> None:
    async def test() -> None:
        async with running_frontend(make_spec(tmp_path, template=None)) as world:
            error = await failure(world.inference.Generate(unary(chat_request("a"))))
            assert violated_field(error) == "generation.prompt.chat"

    run(test())


TOOL_USE = "{% for tool in tools %}<tool>{{ tool.function.name }}</tool>{% endfor %}{{ messages[0].content }}"


async def tokenized_text(world: Any, **fields: Any) -> str:
    prompt = chat_request("time?", **fields).generation.prompt
    tokenized = await world.inference.Tokenize(inference_pb2.TokenizeRequest(prompt=prompt))
    return str(tokenized.text)


def test_tools_are_rendered_with_the_template_for_tools(run: Run, tmp_path: Any) -> None:
    async def test() -> None:
        spec = msgspec.structs.replace(make_spec(tmp_path, template="plain"), tool_use_template=TOOL_USE)
        async with running_frontend(spec) as world:
            assert await tokenized_text(world, tools=[pb.Tool(name="clock")]) == "<tool>clock</tool>time?"
            assert await tokenized_text(world) == "plain"

    run(test())


def test_a_template_for_tools_alone_takes_no_other_chat(run: Run, tmp_path: Any) -> None:
    async def test() -> None:
        spec = msgspec.structs.replace(make_spec(tmp_path, template=None), tool_use_template=TOOL_USE)
        async with running_frontend(spec) as world:
            assert await tokenized_text(world, tools=[pb.Tool(name="clock")]) == "<tool>clock</tool>time?"
            error = await failure(world.inference.Generate(unary(chat_request("time?"))))
            assert violated_field(error) == "generation.prompt.chat.tools"
            model = (await world.models.GetModel(model_pb2.GetModelRequest())).model
            assert model.capabilities.chat

    run(test())


def test_a_template_for_tools_that_does_not_compile_ends_the_start(run: Run, tmp_path: Any) -> None:
    async def test() -> None:
        spec = msgspec.structs.replace(make_spec(tmp_path), tool_use_template="{% if %}")
        with pytest.raises(TemplateRefusedError, match="does not compile"):
            async with running_frontend(spec):
                pass

    run(test())


def test_the_process_knows_no_secret_of_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("PAGEWIRE_TLS_KEY", "secret")
    monkeypatch.setenv("TZ", "Asia/Tokyo")

    async def test() -> None:
        template = ChatTemplate("x", RenderLimits(max_output_bytes=100))
        before = set(psutil.Process().children())
        await template.start()
        try:
            (process,) = set(psutil.Process().children()) - before
            environment = process.environ()
            assert "secret" not in environment.values()
            assert environment["TZ"] == "Asia/Tokyo", "local time is part of what a template may say"
        finally:
            await template.close()

    run(test())
