"""Chats: the contract's conversations, tools and choices from Python values.

What a template makes of them is the server's to say.
"""

from __future__ import annotations

from collections.abc import Mapping

from pagewire.client import openai_shapes
from pagewire.client.chat_formats import format_message
from pagewire.client.constraints import json_or_none
from pagewire.client.errors import InvalidRequest, brief
from pagewire.client.messages import build_message
from pagewire.client.prompts import Chat, NamedTool
from pagewire.v1 import generation_pb2 as pb

_ROLES: Mapping[str, pb.ChatRole] = {
    "system": pb.CHAT_ROLE_SYSTEM,
    "user": pb.CHAT_ROLE_USER,
    "assistant": pb.CHAT_ROLE_ASSISTANT,
    "tool": pb.CHAT_ROLE_TOOL,
}


def chat_message(chat: Chat, path: str) -> pb.Chat:
    """The message; `path` is where it stands, for errors. Raises InvalidRequest."""
    messages = openai_shapes.items(chat.messages, f"{path}.messages")
    tools = openai_shapes.items(chat.tools, f"{path}.tools")
    return build_message(
        pb.Chat,
        path,
        messages=[_chat_message(message, f"{path}.messages[{i}]") for i, message in enumerate(messages)],
        tools=[_tool(tool, f"{path}.tools[{i}]") for i, tool in enumerate(tools)],
        template_arguments=json_or_none(chat.template_arguments, f"{path}.template_arguments"),
        add_generation_prompt=chat.add_generation_prompt,
        tool_choice=_tool_choice(chat.tool_choice, f"{path}.tool_choice"),
        parallel_tool_calls=chat.parallel_tool_calls,
        max_reasoning_tokens=chat.max_reasoning_tokens,
        continue_final_message=chat.continue_final_message,
        format=None if chat.format is None else format_message(chat.format, f"{path}.format"),
    )


def _tool_choice(choice: object, path: str) -> pb.ToolChoice | None:
    match choice:
        case None:
            return None
        case "auto":
            return pb.ToolChoice(auto=pb.AutoToolChoice())
        case "none":
            return pb.ToolChoice(none=pb.NoToolChoice())
        case "required":
            return pb.ToolChoice(required=pb.RequiredToolChoice())
        case NamedTool():
            return build_message(pb.ToolChoice, path, named=choice.name)
        case Mapping():
            return build_message(pb.ToolChoice, path, named=openai_shapes.chosen_tool(choice, path))
        case _:
            raise InvalidRequest(
                f"{path} is {brief(choice)}; it must be 'auto', 'none', 'required', a NamedTool or a mapping",
                field=path,
            )


def _chat_message(given: object, path: str) -> pb.ChatMessage:
    message = openai_shapes.message(given, path)
    if message.role not in _ROLES:
        field = f"{path}.role"
        raise InvalidRequest(f"{field} is {brief(message.role)}; it must be one of {', '.join(_ROLES)}", field=field)
    return build_message(
        pb.ChatMessage,
        path,
        role=_ROLES[message.role],
        content=message.content,
        name=message.name,
        tool_calls=[
            _tool_call(call, f"{path}.tool_calls[{i}]")
            for i, call in enumerate(openai_shapes.items(message.tool_calls, f"{path}.tool_calls"))
        ],
        tool_call_id=message.tool_call_id,
        reasoning_content=message.reasoning_content,
    )


def _tool_call(given: object, path: str) -> pb.ToolCall:
    call = openai_shapes.tool_call(given, path)
    return build_message(
        pb.ToolCall, path, id=call.id, name=call.name, arguments=json_or_none(call.arguments, f"{path}.arguments")
    )


def _tool(given: object, path: str) -> pb.Tool:
    tool = openai_shapes.tool(given, path)
    parameters = json_or_none(tool.parameters, f"{path}.parameters")
    return build_message(pb.Tool, path, name=tool.name, description=tool.description, parameters=parameters)


def wants_parts(generation: pb.Generation) -> bool:
    """Whether content, reasoning and calls come as parts of their own."""
    output = generation.output
    return generation.prompt.HasField("chat") and (output.parts or not output.HasField("parts"))
