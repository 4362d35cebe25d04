"""JSON of a request on its way into a template: nothing is changed, and what cannot be kept is refused by its path."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.frontend_world import failure, running_frontend, violated_field
from support.tiny_tokenizer import make_spec

from pagewire.scheduler_svc.frontend.errors import InvalidArgument
from pagewire.scheduler_svc.frontend.limits import MAX_CHAT_PARTS, MAX_JSON_BYTES, MAX_JSON_DEPTH
from pagewire.scheduler_svc.frontend.request.chat import template_variables
from pagewire.scheduler_svc.frontend.text.chat_template import ChatTemplate, RenderLimits
from pagewire.scheduler_svc.frontend.text.helper_process import Invalid, Refused
from pagewire.scheduler_svc.frontend.text.json_text import JsonReader
from pagewire.scheduler_svc.frontend.text.template_process import Rendered, compile_template, render
from pagewire.scheduler_svc.frontend.text.template_variables import JsonText, Variables
from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2

Run = Callable[[Coroutine[Any, Any, None]], None]
USER = pb.ChatMessage(role=pb.CHAT_ROLE_USER, content="x")


def assistant(content: str | None = None, *arguments: str, **fields: Any) -> pb.ChatMessage:
    calls = [pb.ToolCall(id=f"call{i:05}", name="get", arguments=text) for i, text in enumerate(arguments)]
    message = pb.ChatMessage(role=pb.CHAT_ROLE_ASSISTANT, tool_calls=calls, **fields)
    if content is not None:
        message.content = content
    return message


def rendered(source: str, *messages: pb.ChatMessage, **fields: Any) -> Rendered | Refused | Invalid:
    variables = template_variables(pb.Chat(messages=messages, **fields), {}, "chat")
    return render(compile_template(source), variables, 100_000)


ARGUMENTS = "{{ messages[1].tool_calls[0].function.arguments | tojson }}"
JOINED = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}"
    "{{ 'CALL ' + c.function.name + ' ' + c.function.arguments }}{% endfor %}{% endfor %}"
)
NULL = (
    "{% for m in messages %}{% if m.tool_calls %}[CALL]{% endif %}"
    "{% if m.content is not none %}<{{ m.role }}>{{ m.content }}</>{% endif %}{% endfor %}"
)
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
SCHEMA = '{"type": "object", "properties": {"place": {}, "day": {"enum": [5.0, 5, "ü"]}}, "required": ["place"]}'
TOOL_RESULT = pb.ChatMessage(role=pb.CHAT_ROLE_TOOL, content="", tool_call_id="call00000")
SYSTEM = pb.ChatMessage(role=pb.CHAT_ROLE_SYSTEM, content="")
FROM_REPORTS = [
    (ARGUMENTS, [USER, assistant("", '{"id": 9007199254740993}')], {}, '{"id": 9007199254740993}'),
    (ARGUMENTS, [USER, assistant("", '{"id": 123456789012345678}')], {}, '{"id": 123456789012345678}'),
    (ARGUMENTS, [USER, assistant("", '{"id": 5.0}')], {}, '{"id": 5.0}'),
    (ARGUMENTS, [USER, assistant("", '{"id":-' + "9" * 4300 + "}")], {}, '{"id": -' + "9" * 4300 + "}"),
    (JOINED, [USER, assistant("", '{"city":"Oslo",  "n":1e0}')], {}, 'CALL get {"city":"Oslo",  "n":1e0}'),
    (JOINED, [USER, pb.ChatMessage(role=3, content="", tool_calls=[pb.ToolCall(name="get")])], {}, "CALL get {}"),
    ("{{ tools[0].function.parameters | tojson }}", [USER], {"tools": [pb.Tool(name="f", parameters=SCHEMA)]}, SCHEMA),
    (
        "{{ x | tojson }} {{ y }}",
        [USER],
        {"template_arguments": '{"y": 2.0, "x": {"b": 1, "a": 1}}'},
        '{"b": 1, "a": 1} 2.0',
    ),
    (NULL, [USER, assistant(None, "{}")], {}, "<user>x</>[CALL]"),
    (NULL, [USER, assistant("", "{}")], {}, "<user>x</>[CALL]<assistant></>"),
    (PLAIN, [USER, assistant("", "{}"), TOOL_RESULT], {}, "[user]x[assistant][tool]"),
    (PLAIN, [USER, assistant(""), USER], {}, "[user]x[assistant][user]x"),
    (PLAIN, [SYSTEM, USER], {}, "[system][user]x"),
    (PLAIN, [USER, assistant("", reasoning_content="r"), USER], {}, "[user]x[assistant][user]x"),
    (PLAIN, [USER, assistant(None, reasoning_content="r"), USER], {}, "[user]x[assistant][user]x"),
]


@pytest.mark.parametrize(("source", "messages", "fields", "text"), FROM_REPORTS)
def test_what_is_sent_is_what_the_template_prints(
    source: str, messages: list[pb.ChatMessage], fields: dict[str, Any], text: str, run: Run, tmp_path: Path
) -> None:
    async def test() -> None:
        async with running_frontend(
            make_spec(tmp_path, template=source), max_model_len=65536, num_blocks=5000
        ) as world:
            prompt = pb.Prompt(chat=pb.Chat(messages=messages, **fields))
            assert (await world.inference.Tokenize(inference_pb2.TokenizeRequest(prompt=prompt))).text == text

    run(test())


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(value=st.dictionaries(st.text(), values, max_size=5), ensure_ascii=st.booleans())
def test_any_object_is_read_as_pythons_json_reads_it(value: dict[str, Any], ensure_ascii: bool) -> None:
    text = json.dumps(value, ensure_ascii=ensure_ascii)
    read = JsonReader("chat", MAX_CHAT_PARTS).object(text, "field")
    # Texts, not values: 5 == 5.0, and dicts are equal in whatever order.
    assert json.dumps(read, ensure_ascii=ensure_ascii) == text


@given(text=st.text() | st.text(alphabet='{}[]":,\\ud80e+-.0123Nafltrues \n'))
def test_any_text_is_an_object_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidArgument):
        assert JsonReader("chat", 10).object(text, "field") == json.loads(text)


@pytest.mark.parametrize(
    ("text", "field", "problem"),
    [
        ("", "f", "is not JSON: Expecting value"),
        ("{", "f", "is not JSON"),
        ("{} x", "f", "is not JSON: Extra data"),
        ("{'a': 1}", "f", "is not JSON"),
        ('{"a": 01}', "f", "is not JSON"),
        ('{"a": "\n"}', "f", "is not JSON: Invalid control character"),
        ("[1]", "f", "but an array; it must be an object"),
        ('"{}"', "f", "but a string"),
        ("null", "f", "but null"),
        ("5", "f", "but a number"),
        ("true", "f", "but a boolean"),
        ("NaN", "f", "it must be an object"),
        ('{"a": [1, {"b": NaN}]}', "f.a[1].b", "is NaN, which is not JSON"),
        ('{"a": -Infinity}', "f.a", "is -Infinity"),
        ('{"a": [1e400]}', "f.a[0]", "is 1e400, which is beyond a double"),
        ('{"a": -1' + "0" * 4300 + "}", "f.a", "is an integer of 4301 digits; at most 4300 may be"),
        ('{"a": {"b": 1, "c": 2, "b": 1}}', "f.a.b", "stands twice"),
        ('{"a": 1, "\\u0061": 2}', "f.a", "stands twice"),
        ('{"a": ["\\ud800"]}', "f.a[0]", "half of a surrogate pair"),
        ('{"ü": {"a\\udfff": NaN}}', "f.ü.a\\udfff", "half of a surrogate pair"),
        ('{"a\\udfff": 1}', "f.a\\udfff", "half of a surrogate pair"),
        ('{"a": ' + "[" * MAX_JSON_DEPTH + "]" * MAX_JSON_DEPTH + "}", "f.a" + "[0]" * 99, "more than 100 levels"),
        ('{"a":' * 90_000, "f", "more than 100 levels"),
        ('{"a": [' + "1," * MAX_CHAT_PARTS + "1]}", "chat", "more than 16384 tools, tool calls and values"),
        ("{" + ",".join(f'"{i}":1' for i in range(MAX_CHAT_PARTS + 1)) + "}", "chat", "more than 16384"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_its_path(text: str, field: str, problem: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        JsonReader("chat", MAX_CHAT_PARTS).object(text, "f")
    assert refused.value.field == field
    assert problem in refused.value.problem


def test_as_deep_and_as_many_as_may_be() -> None:
    deep = '{"a": ' + "[" * (MAX_JSON_DEPTH - 1) + "]" * (MAX_JSON_DEPTH - 1) + "}"
    assert json.dumps(JsonReader("chat", MAX_CHAT_PARTS).object(deep, "f")) == deep
    many = '{"a": [' + ", ".join("1" * (MAX_CHAT_PARTS - 1)) + "]}"
    assert json.dumps(JsonReader("chat", MAX_CHAT_PARTS).object(many, "f")) == many


def test_a_name_of_megabytes_is_not_written_out_for_each_value_below_it() -> None:
    text = '{"' + "k" * 900_000 + '": [' + "1," * (MAX_CHAT_PARTS - 2) + "NaN]}"
    with pytest.raises(InvalidArgument) as refused:
        JsonReader("chat", MAX_CHAT_PARTS).object(text, "f")
    assert refused.value.field.endswith(f"…[{MAX_CHAT_PARTS - 2}]")
    assert len(refused.value.field) < 200


def test_tools_calls_and_values_share_one_bound() -> None:
    call = '{"a": [' + ", ".join("1" * (MAX_CHAT_PARTS // 2 - 3)) + "]}"
    fits = rendered("ok", USER, assistant("", call, call))
    assert fits == Rendered("ok")
    over = rendered("ok", USER, assistant("", call, call), tools=[pb.Tool(name="f", parameters='{"a": [1, 1]}')])
    assert isinstance(over, Invalid)
    assert over.field == "chat"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("messages", '{"messages": []}'),
        ("tools", '{"tools": null}'),
        ("add_generation_prompt", '{"a": 1, "add_generation_prompt": false}'),
        ("bos_token", '{"bos_token": "x"}'),
        ("eos_token", '{"eos_token": "x"}'),
        ("unk_token", '{"unk_token": "x"}'),
    ],
)
def test_template_arguments_set_nothing_that_the_server_sets(name: str, text: str) -> None:
    chat = pb.Chat(messages=[USER], template_arguments=text)
    answer = render(compile_template("x"), template_variables(chat, {"unk_token": "<unk>"}, "chat"), 100)
    assert answer == Invalid("chat.template_arguments", f"sets '{name}', which the server sets itself")


def test_json_that_is_wrong_is_refused_over_grpc_with_its_path(run: Run, tmp_path: Path) -> None:
    wrong = [
        ("template_arguments", pb.Chat(messages=[USER], template_arguments="")),
        ("template_arguments.a[1]", pb.Chat(messages=[USER], template_arguments='{"a": [1, NaN]}')),
        ("tools[1].parameters", pb.Chat(messages=[USER], tools=[pb.Tool(name="a"), pb.Tool(name="b", parameters="")])),
        ("tools[0].parameters", pb.Chat(messages=[USER], tools=[pb.Tool(name="a", parameters="true")])),
        ("messages[1].tool_calls[1].arguments", pb.Chat(messages=[USER, assistant("", "{}", "[]")])),
        ("messages[1].tool_calls[0].arguments", pb.Chat(messages=[USER, assistant("", "")])),
        ("messages[1].tool_calls[0].arguments.x", pb.Chat(messages=[USER, assistant("", '{"x": 1, "x": 1}')])),
    ]

    async def test() -> None:
        async with running_frontend(make_spec(tmp_path, template="x")) as world:
            for field, chat in wrong:
                request = inference_pb2.TokenizeRequest(prompt=pb.Prompt(chat=chat))
                error = await failure(world.inference.Tokenize(request))
                assert violated_field(error) == f"prompt.chat.{field}"

    run(test())


MAPPING = [
    "{{ A | tojson }} {{ A | tojson(indent=2) }} {{ c | tojson }}",
    "{{ A is string }} {{ A is mapping }} {{ A is iterable }} {{ A is sequence }} {{ A is defined }} {{ A is none }}",
    "{% for k, v in A.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in A | items %}{{ k }}={{ v | tojson }};{% endfor %}",
    "{% for k in A %}{{ k }}={{ A[k] }};{% endfor %}",
    "{% for k, v in A | dictsort %}{{ k }}{% endfor %} {{ A | list }} {{ A.keys() | join(',') }}",
    "{{ A.city }} {{ A['city'] }} {{ A.get('none', 5) }} {{ A.text }} {{ A._CallArguments__text }}",
    "{{ 'city' in A }} {{ A | length }} {{ A == {'city': 1} }} {{ 'yes' if A else 'no' }}",
    "{% if A is string %}{{ A }}{% else %}{{ A | tojson }}{% endif %}",
    "{% if A is mapping %}{{ A | tojson }}{% else %}{{ raise_exception('no mapping') }}{% endif %}",
    "{{ dict(A, x=1) | tojson }} {{ c }}",
]
TEXT = [
    "{{ 'a' + A + 'b' }}",
    "{{ A + '\\n' }}",
    "{{ 'a' ~ A ~ 'b' }}",
    "{{ A }}",
    "{{ A | trim }} {{ A | string }} {{ A | replace('O', '0') | upper }} {{ [A, 'x'] | join(' ') }}",
    "{{ '%s!' % A }} {{ '{}'.format(A) }} {{ '%s' | format(A) }} {{ A[1:5] }}",
    "{{ A.strip() + 'x' }}",
    "{{ A.split(':')[0] }}",
    "{% if A is not string %}{{ raise_exception('no text') }}{% endif %}{{ A | length }}",
    "{% set out = 'x' %}{% set out = out + A %}{{ out }}",
]


@pytest.mark.parametrize(
    ("source", "as_text"), [*((source, False) for source in MAPPING), *((source, True) for source in TEXT)]
)
@pytest.mark.parametrize(
    "arguments", ['{"city": "Oslo", "n": [1, 2.0], "x": {"y": null}}', "{}", '{"text": "t", "items": 1, "ü": "ä"}']
)
def test_arguments_are_what_transformers_users_pass_to_either_kind_of_template(
    source: str, as_text: bool, arguments: str
) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    source = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{% set A = c.function.arguments %}"
        f"{source}{{% endfor %}}{{% endfor %}}"
    )
    passed = arguments if as_text else json.loads(arguments)
    call = {"id": "call00000", "type": "function", "function": {"name": "get", "arguments": passed}}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    try:
        (theirs,), _ = utils.render_jinja_template([messages], chat_template=source)
    except Exception:  # whatever the template raises
        assert isinstance(rendered(source, USER, assistant("", arguments)), Refused)
    else:
        assert rendered(source, USER, assistant("", arguments)) == Rendered(theirs)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ 'a' if m.content is none else 'b' }}", "a"),
        ("{{ 'a' if m['content'] is not none else 'b' }}", "b"),
        ("{{ 'a' if m.content == none else 'b' }}", "a"),
        ("{% set content = m.content %}{{ 'a' if content is none else 'b' }}", "a"),
        ("{{ m.content }}|{{ m.content | trim }}|{{ m.content or 'c' }}", "||c"),
        ("{{ 'a' if m.content is defined else 'b' }}{{ 'content' in m }}", "bFalse"),
        ("{{ '<' + m.content + '>' }}", "<>"),
        ("{{ '</think>' in m.content }}{{ m.content.split('x') | length }}", "False1"),
        ("{% if m.content is none %}{{ '<' + m.content }}{% endif %}{{ m.content.strip() }}!", "!"),
        ("{{ m.reasoning_content is none }}{{ m.content }}", "False"),
    ],
)
def test_content_that_is_unset_is_none_where_it_is_asked_for_and_absent_elsewhere(source: str, text: str) -> None:
    source = f"{{% for m in messages if m.role == 'assistant' %}}{source}{{% endfor %}}"
    assert rendered(source, USER, assistant(None, "{}")) == Rendered(text)


def test_a_template_that_refuses_refuses_with_its_first_reason() -> None:
    source = "{{ raise_exception('no calls: %s' % messages[1].tool_calls[0].function.arguments.a) }}"
    answer = rendered(source, USER, assistant(None, '{"a": 5}'))
    assert answer == Refused("the chat template refused these messages: no calls: 5")


def test_an_id_that_is_unset_is_not_there() -> None:
    source = "{{ messages[0].tool_calls[0].id is defined }}{{ messages[0].tool_calls[0] | tojson }}"
    message = pb.ChatMessage(role=pb.CHAT_ROLE_ASSISTANT, tool_calls=[pb.ToolCall(name="f")])
    assert rendered(source, message) == Rendered(
        'False{"type": "function", "function": {"name": "f", "arguments": {}}}'
    )
    message.tool_calls[0].id = ""
    answer = rendered(source, message)
    assert answer == Rendered('True{"id": "", "type": "function", "function": {"name": "f", "arguments": {}}}')


def test_the_longest_json_is_read_without_holding_the_event_loop(run: Run) -> None:
    hostile = [
        '{"a": [' + "1," * ((MAX_JSON_BYTES - 10) // 2) + "1]}",
        '{"a": [' + "[]," * ((MAX_JSON_BYTES - 10) // 3) + "1]}",
        '{"a": [' + "{}," * ((MAX_JSON_BYTES - 10) // 3) + "1]}",
        '{"a": [' + "1e9," * ((MAX_JSON_BYTES - 10) // 4) + "1]}",
        "[" * MAX_JSON_BYTES,
        '{"a": ' + "9" * (MAX_JSON_BYTES - 10) + "}",
        '{"a": 0.' + "9" * (MAX_JSON_BYTES - 10) + "}",
        '{"a": "' + "\\n" * ((MAX_JSON_BYTES - 10) // 2) + '"}',
    ]

    async def test() -> None:
        template = ChatTemplate("ok", RenderLimits(max_output_bytes=100, time_limit_s=20))
        await template.start()
        loop = asyncio.get_running_loop()
        longest_s = 0.0

        async def beat() -> None:
            nonlocal longest_s
            while True:
                began = loop.time()
                await asyncio.sleep(0.001)
                longest_s = max(longest_s, loop.time() - began)

        beating = asyncio.create_task(beat())
        try:
            for text in hostile:
                variables = Variables({}, "chat", MAX_CHAT_PARTS, [JsonText("f", text, ["x"])])
                with contextlib.suppress(InvalidArgument):
                    assert (await template.render(variables)).text == "ok"
        finally:
            beating.cancel()
            await template.close()
        assert 0 < longest_s < 2, "the work is another process's"

    run(test())
