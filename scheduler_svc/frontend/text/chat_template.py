"""Chat templates: messages are rendered in processes of their own, within limits of time, memory and output.

`template_process` explains why a process, `helper_pool` how they are kept. A template that does not compile ends the
start. A round trip of a short conversation takes about 0.2 ms. It knows neither gRPC nor tokens.
"""

from dataclasses import dataclass

from pagewire.scheduler_svc.frontend.errors import InvalidArgument
from pagewire.scheduler_svc.frontend.text.helper_pool import HelperEndedError, HelperKind, HelperPool, PoolLimits
from pagewire.scheduler_svc.frontend.text.helper_process import Invalid, Prepared, Refused
from pagewire.scheduler_svc.frontend.text.template_process import FromRenderer, Prepare, Render, Rendered, ToRenderer
from pagewire.scheduler_svc.frontend.text.template_variables import Variables
from pagewire.wire.codec import Codec

_DEFAULT, _TOOL_USE = "default", "tool_use"
_KILL_GRACE_S = 1.0
"""How long after its own alarm a renderer must have answered or ended."""


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


class ChatTemplate:
    """The model's chat template, or both: one that it has for conversations with tools is taken for them, as by
    transformers' `get_chat_template`. One owner starts and closes it; any task may render."""

    def __init__(self, source: str | None, limits: RenderLimits, tool_use_source: str | None = None) -> None:
        named = {_DEFAULT: source, _TOOL_USE: tool_use_source}
        self._sources = {name: text for name, text in named.items() if text is not None}
        self._limits = limits
        prepare = Prepare(self._sources, limits.time_limit_s, limits.memory_limit_bytes, limits.max_output_bytes)
        kind: HelperKind[ToRenderer, FromRenderer] = HelperKind(
            module="pagewire.scheduler_svc.frontend.text.template_process",
            work="chat prompts wait to be rendered",
            prepare=prepare,
            to_helper=Codec(ToRenderer),
            from_helper=Codec(FromRenderer),
        )
        self._renderers = HelperPool(
            kind,
            PoolLimits(
                answer_limit_s=limits.time_limit_s + _KILL_GRACE_S,
                max_processes=limits.max_processes,
                max_waiting=limits.max_waiting,
            ),
        )

    async def start(self) -> None:
        """Start the first process. Raises TemplateRefusedError when a template does not compile."""
        try:
            answer = await self._renderers.start()
        except HelperEndedError as error:
            raise TemplateRefusedError("the chat template could not be compiled within its limits") from error
        if not isinstance(answer, Prepared):
            raise TemplateRefusedError(answer.message if isinstance(answer, Refused) else "unexpected answer")

    async def close(self) -> None:
        """End every process; renderings under way are given up."""
        await self._renderers.close()

    async def render(self, variables: Variables, client: str = "", *, has_tools: bool = False) -> Rendered:
        """Once; clients that wait have their turns one after the other. Raises TemplateRefusedError,
        InvalidArgument for wrong JSON, ResourceExhausted if too many wait."""
        name = _TOOL_USE if has_tools and _TOOL_USE in self._sources else _DEFAULT
        try:
            answer = await self._renderers.ask(Render(name, variables), client)
        except HelperEndedError as error:
            raise TemplateRefusedError(
                f"the chat template took longer than {self._limits.time_limit_s:g} s or more memory than "
                f"{self._limits.memory_limit_bytes} bytes with these messages"
            ) from error
        match answer:
            case Rendered():
                return answer
            case Refused():
                raise TemplateRefusedError(answer.message)
            case Invalid():
                raise InvalidArgument(answer.field, answer.problem)
            case Prepared():
                raise TemplateRefusedError("the renderer lost its place")
