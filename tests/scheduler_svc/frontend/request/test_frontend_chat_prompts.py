"""Whole chat prompts through a real frontend, against transformers' `apply_chat_template`: conversations × templates.

Both are given the same conversation in the shape of OpenAI's clients; `chat_templates/SOURCES.md` says where the
templates come from.
"""

import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from support.frontend_world import failure, running_frontend, violated_field
from support.tiny_tokenizer import END_OF_TURN, make_spec, make_tokenizer

from pagewire.client import Chat, requests
from pagewire.v1 import inference_pb2

transformers = pytest.importorskip("transformers")

Run = Callable[[Coroutine[Any, Any, None]], None]
Messages = list[dict[str, Any]]
FOLDER = Path(__file__).parent / "chat_templates"
SPECIAL_TOKENS = {"bos_token": "<|im_start|>", "eos_token": END_OF_TURN}


@dataclass(frozen=True)
class Family:
    """A template, and how transformers' users must call it."""

    file: str
    arguments_are_text: bool = False
    null_content: str = "absent"
    """What stands for null content: `absent`, as apply_chat_template makes of it; `none`, for a template that asks, and
    which only the function below apply_chat_template passes on; `empty`, where the template fails with the others."""


FAMILIES = [
    Family("qwen3", null_content="empty"),
    Family("smollm2", null_content="empty"),
    Family("llama3_style"),
    Family("mistral_style"),
    Family("deepseek_r1_style", arguments_are_text=True, null_content="none"),
    Family("parameters_style", null_content="none"),
]


@dataclass(frozen=True)
class Conversation:
    """What both render."""

    name: str
    messages: Messages
    tools: tuple[dict[str, Any], ...] = ()
    variables: dict[str, Any] | None = None
    add_generation_prompt: bool = True


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str | None, *calls: tuple[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    if calls:
        more["tool_calls"] = [
            {"id": f"call{i:05}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for i, (name, arguments) in enumerate(calls)
        ]
    return {"role": "assistant", "content": content, **more}


def result(content: str, index: int = 0) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call{index:05}", "content": content}


def tool(name: str, description: str | None = None, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    given = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": {key: value for key, value in given.items() if value is not None}}


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "zone": {"type": "string", "enum": ["b", "a", "ü", ""], "default": None},
        "größe": {"type": "number", "minimum": 5.0, "maximum": 1e22, "multipleOf": 0.1},
        "id": {"type": "integer", "maximum": 18446744073709551616, "const": -9007199254740993},
        "a": {"type": "array", "items": {"anyOf": [{"type": "object", "properties": {}}, {}, {"not": {}}]}},
        "日付": {"$ref": "#/$defs/日付", "x": [], "nested": {"z": {"y": {"x": [[], [{}], [1.5e-7, -0.0, True]]}}}},
    },
    "required": ["zone", "a"],
    "additionalProperties": False,
}
WEATHER = tool("weather", 'tells "it" <b>&amp;</b>', SCHEMA)
ARGUMENTS: dict[str, Any] = {
    "z": 9007199254740993,
    "big": 12345678901234567890123456789012345678901234567890,
    "a": 5.0,
    "tiny": 1e-300,
    "ключ": {"b": None, "a": [True, False, {}, [], ""]},
    "text": "quote \" backslash \\ newline \n tag </tool_call> & ' 🙂",
    "empty": {},
}

CONVERSATIONS = [
    Conversation("plain", [system("Be brief."), user("Grüße, wie spät ist es? 🙂")]),
    Conversation("several turns", [user("a"), assistant("b"), user("c\n\n"), assistant("  d "), user("e")]),
    Conversation("empty texts", [system(""), user("a"), assistant(""), user("")]),
    Conversation("special tokens as text", [user("<|im_start|>system\nx<|im_end|> </think> <b>")]),
    Conversation("tools with nested schemas", [system("s"), user("rain?")], (WEATHER, tool("now"))),
    Conversation("tools of no arguments", [user("x")], (tool("a", "", {}), tool("b", None, {"type": "object"}))),
    Conversation(
        "a call and its result",
        [user("rain?"), assistant("Let me see.", ("weather", ARGUMENTS)), result('{"rain": true}'), assistant("Yes.")],
        (WEATHER,),
        add_generation_prompt=False,
    ),
    Conversation("a call under way", [user("rain?"), assistant("", ("weather", ARGUMENTS)), result("5")], (WEATHER,)),
    Conversation("null content", [user("a"), assistant(None, ("get", {"id": 2**63})), result("x"), user("b")]),
    Conversation("null content and no arguments", [user("a"), assistant(None, ("get", {})), result("")]),
    Conversation(
        "several calls, empty results",
        [
            user("a"),
            assistant(None, ("x", {"b": 1, "a": 2.0}), ("y", {})),
            result(""),
            result("", 1),
            assistant("done"),
        ],
        (tool("x"), tool("y")),
    ),
    Conversation("reasoning", [user("a"), assistant("b", reasoning_content="hm,\nhm"), user("c")]),
    Conversation(
        "reasoning before a call",
        [user("a"), assistant("", ("f", {"x": [1]}), reasoning_content="I call."), result("r"), user("b")],
    ),
    Conversation("reasoning alone", [user("a"), assistant("", reasoning_content="r")], add_generation_prompt=False),
    Conversation("reasoning in the content", [user("a"), assistant("<think>\nx\n</think>\n\ny"), user("b")]),
    Conversation("thinking switched off", [user("a")], variables={"enable_thinking": False}),
    Conversation("thinking switched on", [user("a")], (WEATHER,), variables={"enable_thinking": True}),
    Conversation("thinking null", [user("a")], variables={"enable_thinking": None, "date_string": "2025-01-01"}),
    Conversation("documents", [user("a")], variables={"documents": [{"title": "t", "id": 2**60, "text": "x"}]}),
    Conversation("no generation prompt", [system("s"), user("a"), assistant("b")], add_generation_prompt=False),
    Conversation("a system prompt amid the rest", [user("a"), assistant("b"), system("s"), user("c")]),
]


@pytest.fixture(scope="module")
def judge() -> Any:
    return transformers.PreTrainedTokenizerFast(tokenizer_object=make_tokenizer(), **SPECIAL_TOKENS)


def expected(judge: Any, family: Family, template: str, conversation: Conversation) -> str | None:
    """transformers' text; none where the template refuses the conversation."""
    messages: Messages = json.loads(json.dumps(conversation.messages))
    for message in messages:
        for call in message.get("tool_calls", ()) if family.arguments_are_text else ():
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        if message["content"] is None and family.null_content == "empty":
            message["content"] = ""
    arguments: dict[str, Any] = {
        "chat_template": template,
        "tools": list(conversation.tools) or None,
        "add_generation_prompt": conversation.add_generation_prompt,
        **(conversation.variables or {}),
    }
    try:
        if family.null_content == "none":
            utils = transformers.utils.chat_template_utils
            (text,), _ = utils.render_jinja_template([messages], **SPECIAL_TOKENS, **arguments)
        else:
            text = judge.apply_chat_template(messages, tokenize=False, **arguments)
    except Exception:  # whatever its template raises
        return None
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.file)
def test_a_prompt_is_the_one_that_transformers_makes(family: Family, judge: Any, run: Run, tmp_path: Path) -> None:
    template = (FOLDER / f"{family.file}.jinja").read_text()
    spec = msgspec.structs.replace(make_spec(tmp_path, template=template), special_tokens=SPECIAL_TOKENS)
    tokenizer = make_tokenizer()

    async def test() -> None:
        num_rendered = 0
        async with running_frontend(spec, max_model_len=65536, num_blocks=5000) as world:
            for conversation in CONVERSATIONS:
                chat = Chat(
                    conversation.messages,
                    conversation.tools,
                    conversation.variables,
                    conversation.add_generation_prompt,
                )
                request = inference_pb2.TokenizeRequest(prompt=requests.prompt_message(chat, "prompt"))
                text = expected(judge, family, template, conversation)
                if text is None:
                    assert violated_field(await failure(world.inference.Tokenize(request))) == "prompt.chat"
                    continue
                num_rendered += 1
                try:
                    tokenized = await world.inference.Tokenize(request)
                except grpc.aio.AioRpcError as error:
                    raise AssertionError(f"{conversation.name}: {error.details()}") from error
                assert tokenized.text == text, conversation.name
                assert list(tokenized.ids) == tokenizer.encode(text, add_special_tokens=False).ids
        assert num_rendered >= 12

    run(test())
