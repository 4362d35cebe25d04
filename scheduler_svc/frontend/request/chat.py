"""Chats: from `pagewire.v1.Chat` to the variables of a chat template, validated but for what JSON texts hold.

It knows the shapes that templates expect (Hugging Face's: a tool is `{"type": "function", "function": {…}}`) and the
contract's limits; it reads no JSON and renders nothing: that is done in another process (`template_variables`), because
this is done on the event loop that every stream of the process shares. Invariants: what comes out is plain data, the
work is bounded, and what is unset, empty or none stays what it is.
"""

from collections.abc import Mapping
from typing import Any

from pagewire.scheduler_svc.frontend.errors import InvalidArgument
from pagewire.scheduler_svc.frontend.limits import MAX_CHAT_MESSAGES, MAX_CHAT_PARTS, MAX_JSON_BYTES
from pagewire.scheduler_svc.frontend.request.continuation import check_continuation, mark_continuation
from pagewire.scheduler_svc.frontend.text.template_variables import JsonText, Variables
from pagewire.v1 import generation_pb2 as pb

_ROLES = {
    pb.CHAT_ROLE_SYSTEM: "system",
    pb.CHAT_ROLE_USER: "user",
    pb.CHAT_ROLE_ASSISTANT: "assistant",
    pb.CHAT_ROLE_TOOL: "tool",
}
_SERVER_VARIABLES = frozenset({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"})


def template_variables(chat: pb.Chat, special_tokens: Mapping[str, str], path: str) -> Variables:
    """Everything that the template sees. `path` is the path of `chat` in its request. Raises InvalidArgument."""
    if not 1 <= len(chat.messages) <= MAX_CHAT_MESSAGES:
        raise InvalidArgument(f"{path}.messages", f"has {len(chat.messages)} messages; 1 to {MAX_CHAT_MESSAGES} may be")
    parts = _Parts(path)
    tools = [parts.tool(tool, i) for i, tool in enumerate(chat.tools)]
    messages = [_message(message, i, parts) for i, message in enumerate(chat.messages)]
    begins_answer = chat.add_generation_prompt if chat.HasField("add_generation_prompt") else True
    if chat.continue_final_message:
        check_continuation(chat, path)
        mark_continuation(messages[-1])
        begins_answer = False
    if chat.tool_choice.HasField("none"):
        tools, parts.objects = [], []
    arguments = None
    if chat.HasField("template_arguments"):
        arguments = _json(chat.template_arguments, f"{path}.template_arguments", [])
    return Variables(
        values={
            **special_tokens,
            "messages": messages,
            "tools": tools or None,
            "add_generation_prompt": begins_answer,
        },
        path=path,
        max_values=parts.num_left,
        objects=parts.objects,
        call_arguments=parts.call_arguments,
        template_arguments=arguments,
        reserved=sorted(_SERVER_VARIABLES.union(special_tokens)),
    )


def _message(message: pb.ChatMessage, index: int, parts: "_Parts") -> dict[str, Any]:
    path = f"{parts.path}.messages[{index}]"
    role = _ROLES.get(message.role)
    if role is None:
        raise InvalidArgument(f"{path}.role", f"is {message.role}, which is no role")
    rendered: dict[str, Any] = {"role": role, "content": _content(message, path)}
    if message.HasField("name"):
        rendered["name"] = message.name
    if message.tool_calls:
        if message.role != pb.CHAT_ROLE_ASSISTANT:
            raise InvalidArgument(f"{path}.tool_calls", f"is set in a message of role {role}; only assistant's has it")
        rendered["tool_calls"] = [parts.call(call, index, i) for i, call in enumerate(message.tool_calls)]
    if message.HasField("tool_call_id"):
        if message.role != pb.CHAT_ROLE_TOOL:
            raise InvalidArgument(f"{path}.tool_call_id", f"is set in a message of role {role}; only tool's has it")
        rendered["tool_call_id"] = message.tool_call_id
    if message.HasField("reasoning_content"):
        if message.role != pb.CHAT_ROLE_ASSISTANT:
            raise InvalidArgument(
                f"{path}.reasoning_content", f"is set in a message of role {role}; only assistant's has it"
            )
        # Under both names and in this order, as transformers gives it.
        reasoning = message.reasoning_content
        rendered = {"thinking": reasoning, **rendered, "reasoning_content": reasoning}
    return rendered


def _content(message: pb.ChatMessage, path: str) -> str | None:
    if message.HasField("content"):
        return message.content
    # Some templates print an absent content as "None": only where nothing is meant may nothing be set.
    if message.role != pb.CHAT_ROLE_ASSISTANT or not (message.tool_calls or message.HasField("reasoning_content")):
        raise InvalidArgument(
            f"{path}.content",
            "is not set, as only an assistant's message with tool_calls or reasoning_content may be; it may be empty",
        )
    return None


def _json(text: str, path: str, steps: list[str | int]) -> JsonText:
    # Whatever the text, a character has at most 4 bytes: only a long one is encoded to count them.
    if len(text) > MAX_JSON_BYTES // 4 and (size := len(text.encode())) > MAX_JSON_BYTES:
        raise InvalidArgument(path, f"has {size} bytes; at most {MAX_JSON_BYTES} may be")
    return JsonText(path, text, steps)


class _Parts:
    """One chat's tools and tool calls, counted, and the JSON texts found in them."""

    def __init__(self, path: str) -> None:
        """`path` is the chat's."""
        self.path = path
        self.num_left = MAX_CHAT_PARTS
        self.objects: list[JsonText] = []
        self.call_arguments: list[JsonText] = []

    def _count(self) -> None:
        self.num_left -= 1
        if self.num_left < 0:
            raise InvalidArgument(
                self.path, f"has more than {MAX_CHAT_PARTS} tools, tool calls and values in their JSON"
            )

    def call(self, call: pb.ToolCall, message_index: int, index: int) -> dict[str, Any]:
        """A call that an assistant made."""
        self._count()
        path = f"{self.path}.messages[{message_index}].tool_calls[{index}]"
        if not call.name:
            raise InvalidArgument(f"{path}.name", "is empty; a call names its tool")
        text = call.arguments if call.HasField("arguments") else "{}"
        steps: list[str | int] = ["messages", message_index, "tool_calls", index, "function", "arguments"]
        self.call_arguments.append(_json(text, f"{path}.arguments", steps))
        function = {"name": call.name, "arguments": None}
        given_id = {"id": call.id} if call.HasField("id") else {}
        return {**given_id, "type": "function", "function": function}

    def tool(self, tool: pb.Tool, index: int) -> dict[str, Any]:
        """A tool that the model may call."""
        self._count()
        path = f"{self.path}.tools[{index}]"
        if not tool.name:
            raise InvalidArgument(f"{path}.name", "is empty; a tool has a name")
        function: dict[str, Any] = {"name": tool.name}
        if tool.HasField("description"):
            function["description"] = tool.description
        if tool.HasField("parameters"):
            function["parameters"] = None
            steps: list[str | int] = ["tools", index, "function", "parameters"]
            self.objects.append(_json(tool.parameters, f"{path}.parameters", steps))
        return {"type": "function", "function": function}
