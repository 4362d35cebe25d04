"""Chat templates: messages are rendered in processes of their own, within limits of time, memory and output.

`template_process` explains why a process. This side keeps a small pool of them: the first is started, and compiles the
template, before the server listens, so that a template that does not compile ends the start; another is started when
the first is busy. A renderer that ends, because its time was up or its memory spent, is replaced at the next request.
A round trip of a short conversation takes about 0.2 ms.

It knows neither gRPC nor tokens. Invariants: a renderer holds one rendering at a time; a caller that goes away leaves
its rendering to finish, because a process with an unread answer cannot be used again; one that goes away before its
turn leaves nothing.
"""

import asyncio
import contextlib
import os
import sys
from collections import deque
from dataclasses import dataclass

from pagewire.scheduler_svc.frontend.errors import InvalidArgument, ResourceExhausted
from pagewire.scheduler_svc.frontend.fairness import FairTurns
from pagewire.scheduler_svc.frontend.text.template_process import (
    FRAME_HEADER,
    FromRenderer,
    Invalid,
    Prepare,
    Prepared,
    Refused,
    Render,
    Rendered,
    ToRenderer,
)
from pagewire.scheduler_svc.frontend.text.template_variables import Variables
from pagewire.wire.codec import MAX_FRAME_BYTES, Codec, WireError

_DEFAULT, _TOOL_USE = "default", "tool_use"
_KILL_GRACE_S = 1.0
"""How long after its own alarm a renderer must have answered or ended."""

_ENVIRONMENT = ("PATH", "HOME", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "PYTHONUSERBASE", "LANG", "LC_ALL", "TZ")
"""What a renderer inherits: enough to find Python's libraries and to know local time, and nothing that is a secret."""


class TemplateRefusedError(Exception):
    """The template cannot be rendered with these messages, or not within the limits."""


@dataclass(frozen=True, kw_only=True)
class RenderLimits:
    """What one rendering may use, and how many there may be."""

    max_output_bytes: int
    time_limit_s: float = 2.0
    memory_limit_bytes: int = 256 * 1024 * 1024
    max_processes: int = 2
    max_waiting: int = 256


class _RendererEndedError(Exception):
    """The process ended, or answered nothing it should."""


class _Renderer:
    """One process. Not for two callers at a time."""

    def __init__(self, process: asyncio.subprocess.Process, limits: RenderLimits) -> None:
        self._process = process
        self._limits = limits
        self._to_renderer: Codec[ToRenderer] = Codec(ToRenderer)
        self._from_renderer: Codec[FromRenderer] = Codec(FromRenderer)

    @classmethod
    async def start(cls, sources: dict[str, str], limits: RenderLimits) -> "_Renderer":
        """Start a process and give it the templates. Raises TemplateRefusedError when one does not compile."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "pagewire.scheduler_svc.frontend.text.template_process",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        )
        renderer = cls(process, limits)
        prepare = Prepare(sources, limits.time_limit_s, limits.memory_limit_bytes, limits.max_output_bytes)
        try:
            # A process takes its time to start, on a busy machine more than a template may take.
            answer = await renderer.exchange(prepare, timeout_s=60)
        except _RendererEndedError as error:
            await renderer.end()
            raise TemplateRefusedError("the chat template could not be compiled within its limits") from error
        if not isinstance(answer, Prepared):
            await renderer.end()
            raise TemplateRefusedError(answer.message if isinstance(answer, Refused) else "unexpected answer")
        return renderer

    async def exchange(self, request: ToRenderer, timeout_s: float) -> FromRenderer:
        """Ask and wait for the answer. Raises _RendererEndedError, after which the process is of no use."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise _RendererEndedError("started without pipes")
        body = self._to_renderer.encode(request)
        try:
            async with asyncio.timeout(timeout_s):
                stdin.write(FRAME_HEADER.pack(len(body)) + body)
                await stdin.drain()
                (length,) = FRAME_HEADER.unpack(await stdout.readexactly(FRAME_HEADER.size))
                if length > MAX_FRAME_BYTES:
                    raise WireError(f"an answer of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
                return self._from_renderer.decode(await stdout.readexactly(length))
        except (TimeoutError, asyncio.IncompleteReadError, OSError, WireError) as error:
            raise _RendererEndedError(str(error)) from error

    async def end(self) -> None:
        """End the process, whatever it does, and wait for it."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


class ChatTemplate:
    """The model's chat template, or both: one that it has for conversations with tools is taken for them, as by
    transformers' `get_chat_template`. One owner starts and closes it; any task may render."""

    def __init__(self, source: str | None, limits: RenderLimits, tool_use_source: str | None = None) -> None:
        named = {_DEFAULT: source, _TOOL_USE: tool_use_source}
        self._sources = {name: text for name, text in named.items() if text is not None}
        self._limits = limits
        self._idle: deque[_Renderer] = deque()
        self._turns = FairTurns(limits.max_processes)
        self._renderings: set[asyncio.Task[str]] = set()
        self._num_waiting = 0

    async def start(self) -> None:
        """Start the first process. Raises TemplateRefusedError when a template does not compile."""
        self._idle.append(await _Renderer.start(self._sources, self._limits))

    async def close(self) -> None:
        """End every process; renderings under way are given up."""
        for rendering in list(self._renderings):
            rendering.cancel()
        await asyncio.gather(*self._renderings, return_exceptions=True)
        while self._idle:
            await self._idle.pop().end()

    async def render(self, variables: Variables, client: str = "", *, has_tools: bool = False) -> str:
        """The text; clients that wait have their turns one after the other. Raises TemplateRefusedError,
        InvalidArgument for wrong JSON, ResourceExhausted if too many wait."""
        name = _TOOL_USE if has_tools and _TOOL_USE in self._sources else _DEFAULT
        num_ahead = self._num_waiting + len(self._renderings)
        if num_ahead >= self._limits.max_waiting:
            raise ResourceExhausted(
                f"{num_ahead} chat prompts wait to be rendered; the limit is {self._limits.max_waiting}",
                retry_after_s=self._limits.time_limit_s,
            )
        self._num_waiting += 1
        try:
            await self._turns.take(client)
        finally:
            self._num_waiting -= 1
        rendering = asyncio.create_task(self._render(name, variables))
        self._renderings.add(rendering)
        rendering.add_done_callback(self._forget)
        return await asyncio.shield(rendering)

    def _forget(self, rendering: asyncio.Task[str]) -> None:
        self._turns.free()
        self._renderings.discard(rendering)
        if not rendering.cancelled():
            rendering.exception()  # its caller may have gone away

    async def _render(self, name: str, variables: Variables) -> str:
        renderer = self._idle.pop() if self._idle else await _Renderer.start(self._sources, self._limits)
        try:
            answer = await renderer.exchange(Render(name, variables), self._limits.time_limit_s + _KILL_GRACE_S)
        except _RendererEndedError as error:
            await renderer.end()
            raise TemplateRefusedError(
                f"the chat template took longer than {self._limits.time_limit_s:g} s or more memory than "
                f"{self._limits.memory_limit_bytes} bytes with these messages"
            ) from error
        except BaseException:
            # Given up, or an error that nobody foresaw: what the process holds now is unknown.
            await renderer.end()
            raise
        self._idle.append(renderer)
        match answer:
            case Rendered():
                return answer.text
            case Refused():
                raise TemplateRefusedError(answer.message)
            case Invalid():
                raise InvalidArgument(answer.field, answer.problem)
            case Prepared():
                raise TemplateRefusedError("the renderer lost its place")
