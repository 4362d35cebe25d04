"""Helper processes killed from outside: an innocent request is answered all the same, one that kills two is refused."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.tiny_tokenizer import make_spec

from pagewire.scheduler_svc.frontend.text.chat_template import ChatTemplate, RenderLimits, TemplateRefusedError
from pagewire.scheduler_svc.frontend.text.grammar_compiler import CompileLimits, GrammarCompiler
from pagewire.scheduler_svc.frontend.text.languages import Choice
from pagewire.scheduler_svc.frontend.text.template_variables import Variables

Run = Callable[[Coroutine[Any, Any, None]], None]
LOOP = "{% if messages %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}x"
TEMPLATE, GRAMMAR = "template_process", "grammar_process"


def helpers(module: str) -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        try:
            if child.status() != psutil.STATUS_ZOMBIE and any(module in word for word in child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


async def helper_beside(module: str, killed: set[int]) -> int:
    """The pid of a helper that has not been killed yet, once there is one."""
    async with asyncio.timeout(30):
        while not (pids := [helper.pid for helper in helpers(module) if helper.pid not in killed]):  # noqa: ASYNC110 (no event)
            await asyncio.sleep(0.01)
    return pids[0]


async def answering(pid: int) -> int:
    """The child by which a helper answers, once it is there."""
    async with asyncio.timeout(30):
        while not (children := psutil.Process(pid).children()):  # noqa: ASYNC110 (no event)
            await asyncio.sleep(0.01)
    return children[0].pid


async def kill(pid: int) -> None:
    """A helper, and wait for the child that would answer for a moment longer."""
    child = psutil.Process(await answering(pid))
    os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(child.wait, 10)


async def killed_with_a_request(module: str, ask: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """The answer to a request that a helper held when it was killed."""
    pid = await helper_beside(module, set())
    os.kill(await answering(pid), signal.SIGSTOP)
    asking = asyncio.create_task(ask())
    await asyncio.sleep(0.1)  # the request is in the pipe
    os.kill(pid, signal.SIGKILL)
    return await asking


def test_a_template_process_that_is_killed_fails_no_request(run: Run) -> None:
    async def test() -> None:
        template = ChatTemplate(LOOP, RenderLimits(max_output_bytes=10, max_processes=2))
        await template.start()
        try:
            # An idle one first, found dead by the next request.
            await kill(await helper_beside(TEMPLATE, set()))
            assert (await template.render(Variables({"messages": ""}))).text == "x"
            answer = await killed_with_a_request(TEMPLATE, lambda: template.render(Variables({"messages": ""})))
            assert answer.text == "x"
        finally:
            await template.close()

    run(test())


def test_a_rendering_that_two_processes_do_not_survive_is_refused(run: Run) -> None:
    async def test() -> None:
        template = ChatTemplate(LOOP, RenderLimits(max_output_bytes=10, time_limit_s=60, max_processes=1))
        await template.start()
        try:
            rendering = asyncio.create_task(template.render(Variables({"messages": "loop"})))
            killed: set[int] = set()
            for _ in range(2):
                pid = await helper_beside(TEMPLATE, killed)
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            with pytest.raises(TemplateRefusedError):
                await asyncio.wait_for(rendering, 30)
            assert helpers(TEMPLATE) == []
            assert (await template.render(Variables({"messages": ""}))).text == "x"
        finally:
            await template.close()

    run(test())


def test_a_process_whose_own_time_was_up_is_not_tried_again(run: Run) -> None:
    async def test() -> None:
        template = ChatTemplate(LOOP, RenderLimits(max_output_bytes=10, time_limit_s=0.5, max_processes=1))
        await template.start()
        try:
            rendering = asyncio.create_task(template.render(Variables({"messages": "loop"})))
            seen = set()
            while not rendering.done():
                seen |= {helper.pid for helper in helpers(TEMPLATE)}
                await asyncio.sleep(0.05)
            with pytest.raises(TemplateRefusedError):
                await rendering
            # It is what answers the next one, without having been started again.
            assert (await template.render(Variables({"messages": ""}))).text == "x"
            assert {helper.pid for helper in helpers(TEMPLATE)} == seen
            assert len(seen) == 1
        finally:
            await template.close()

    run(test())


def test_a_helper_ends_as_its_child_does_and_with_it(run: Run) -> None:
    async def test() -> None:
        template = ChatTemplate(LOOP, RenderLimits(max_output_bytes=10, time_limit_s=60, max_processes=1))
        await template.start()
        try:
            (helper,) = helpers(TEMPLATE)
            (child,) = helper.children()
            rendering = asyncio.create_task(template.render(Variables({"messages": ""})))
            child.kill()
            assert (await rendering).text == "x"
            (again,) = helpers(TEMPLATE)
            assert again.pid != helper.pid
            (child,) = again.children()
            again.kill()
            await asyncio.to_thread(child.wait, 10)
        finally:
            await template.close()

    run(test())


def test_the_same_of_the_grammar_process(run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        compiler = GrammarCompiler(make_spec(tmp_path), CompileLimits(max_processes=2))
        try:
            assert await compiler.compile(Choice(("a",)), "")
            await kill(await helper_beside(GRAMMAR, set()))
            assert await compiler.compile(Choice(("b",)), "")
            assert await killed_with_a_request(GRAMMAR, lambda: compiler.compile(Choice(("c",)), ""))
        finally:
            await compiler.close()

    run(test())
