"""Continuations: an answer that goes on with the last message of its chat instead of beginning anew.

No template can be asked to leave a message open, so the message is rendered with a mark behind what it says so far, and
the text is cut there. So layout that a template puts behind a message is cut, and none that the message ends with is.
"""

from typing import Any

from pagewire.scheduler_svc.frontend.errors import InvalidArgument
from pagewire.v1 import generation_pb2 as pb

_MARK = "\U000f0a7epagewire goes on here\U000f0a7e"
"""Private characters, which nobody's text has."""


def check_continuation(chat: pb.Chat, path: str) -> None:
    """Raise InvalidArgument where there is nothing to go on with."""
    last, where = chat.messages[-1], f"{path}.messages[{len(chat.messages) - 1}]"
    field = f"{path}.continue_final_message"
    if chat.HasField("add_generation_prompt") and chat.add_generation_prompt:
        raise InvalidArgument(field, "is true beside add_generation_prompt, which begins a new message")
    if last.role != pb.CHAT_ROLE_ASSISTANT:
        raise InvalidArgument(field, f"is true, and {where} is not the assistant's")
    if last.tool_calls:
        raise InvalidArgument(field, f"is true, and {where} has tool_calls, behind which nothing goes on")
    if not (last.content or last.reasoning_content):
        raise InvalidArgument(field, f"is true, and {where} says nothing yet")


def mark_continuation(message: dict[str, Any]) -> None:
    """Mark where it goes on: behind its content, or its reasoning where that is all."""
    if message["content"]:
        message["content"] += _MARK
    else:
        for key in ("thinking", "reasoning_content"):
            message[key] += _MARK


def cut_continuation(rendered: str, path: str) -> str:
    """The prompt, up to the mark. Raises InvalidArgument where the template did not write what it marks."""
    text, *others = rendered.split(_MARK)
    if len(others) != 1:
        how = "more than once" if others else "nowhere"
        raise InvalidArgument(
            f"{path}.continue_final_message", f"is true, and what the message says last stands {how} in the prompt"
        )
    return text
