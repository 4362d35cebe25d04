"""The gateway, called by OpenAI's own client: over HTTP, against a scripted service and against a real model."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx2 as httpx
import openai
import pytest
from google.rpc import error_details_pb2
from langchain_core.messages import AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import SecretStr
from support.http_gateway import gateway
from support.scripted_service import EOS, Responses, ScriptedService, Stream, status, unavailable
from support.service import serve

from pagewire.client.__main__ import main
from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2

ANSWER = "Hello, wörld €"
HI: list[Any] = [{"role": "user", "content": "hi"}]


@pytest.fixture
def address(service: ScriptedService) -> Iterator[str]:
    with gateway(service.address) as running:
        yield running


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="sk-mine", max_retries=0, timeout=20) as connected:
        yield connected


def says(*parts: pb.Part, reason: pb.FinishReason = pb.FINISH_REASON_EOS) -> Stream:
    def script(_request: inference_pb2.StreamGenerateRequest, _context: grpc.ServicerContext) -> Responses:
        yield inference_pb2.StreamGenerateResponse(started=pb.Started(request_id="x", seed=1, prompt_tokens=3))
        for part in parts:
            delta = pb.Delta(tokens=[pb.Token(id=1, text=b"?")], parts=[part])
            yield inference_pb2.StreamGenerateResponse(delta=delta)
        yield inference_pb2.StreamGenerateResponse(finished=pb.Finished(reason=reason, stop_token_id=EOS))
        usage = pb.Usage(prompt_tokens=3, cached_tokens=2, completion_tokens=4)
        yield inference_pb2.StreamGenerateResponse(usage=usage)

    return script


def call(index: int, *arguments: str, is_complete: bool = True) -> list[pb.Part]:
    first = pb.ToolCallPart(index=index, id=f"call0000{index}", name="f")
    more = [pb.ToolCallPart(index=index, arguments=text) for text in arguments]
    last = [pb.ToolCallPart(index=index, is_complete=True)] if is_complete else []
    return [pb.Part(tool_call=each) for each in [first, *more, *last]]


def test_a_chat(client: openai.OpenAI, service: ScriptedService) -> None:
    answer = client.chat.completions.create(
        model="scripted", messages=HI, max_completion_tokens=5, temperature=0, seed=7
    )
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", ANSWER[:5], "length")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 5, 8)
    assert answer.id.startswith("chatcmpl-")
    request = service.requests(inference_pb2.GenerateRequest)[0].generation
    assert [message.content for message in request.prompt.chat.messages] == ["hi"]
    assert (request.stopping.max_tokens, request.sampling.temperature, request.sampling.seed) == (5, 0, 7)
    assert {each["authorization"] for each in service.metadata} == {"Bearer sk-mine"}


def test_a_chat_streams(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="scripted", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(said) == ANSWER
    assert len([text for text in said if text]) > 3
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(ANSWER.encode()) + 1


def test_reasoning_calls_and_malformed_calls_stream(client: openai.OpenAI, service: ScriptedService) -> None:
    malformed = pb.Part(malformed_call=pb.MalformedCall(text="<bad>", reason="no", index=1))
    service.streams = [
        says(pb.Part(reasoning="Hm"), pb.Part(content="So"), *call(0, '{"a"', ": 1}"), *call(1, "{", is_complete=False),
             malformed, *call(2, "{}"))
    ]  # fmt: skip
    chunks = list(client.chat.completions.create(model="scripted", messages=HI, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "Hm"
    assert "".join(delta.content or "" for delta in deltas) == "So<bad>"
    calls = [made for delta in deltas for made in delta.tool_calls or ()]
    assert [(made.index, made.id, made.function and made.function.arguments) for made in calls] == [
        (0, "call00000", '{"a": 1}'),
        (1, "call00002", "{}"),
    ]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_texts(client: openai.OpenAI, service: ScriptedService) -> None:
    answer = client.completions.create(model="scripted", prompt=["a", "b"], max_tokens=5, n=2)
    assert [(choice.index, choice.text) for choice in answer.choices] == [(i, ANSWER[:5]) for i in range(4)]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 20
    client.completions.create(model="scripted", prompt=[1, 2, 3])
    asked = service.requests(inference_pb2.GenerateRequest)[-1].generation
    assert (list(asked.prompt.token_ids.ids), asked.stopping.max_tokens) == ([1, 2, 3], 16)
    stream = client.completions.create(model="scripted", prompt="a", stream=True, max_tokens=100)
    assert "".join(chunk.choices[0].text for chunk in stream) == ANSWER


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert model.id == "scripted"
    assert client.models.retrieve("scripted").id == "scripted"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


def test_every_key_reaches_its_field(client: openai.OpenAI, service: ScriptedService) -> None:
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": 2**60 + 1}}}
    schema: Any = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"b": 1, "a": 2}, "strict": True}}
    client.chat.completions.create(
        model="scripted",
        messages=HI,
        n=2,
        top_p=0.5,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"5": 1},
        stop=["a", "b"],
        tools=[tool],
        tool_choice={"type": "function", "function": {"name": "f"}},
        parallel_tool_calls=False,
        response_format=schema,
        logprobs=True,
        top_logprobs=2,
        extra_body={
            "top_k": 4,
            "min_p": 0.25,
            "chat_template_kwargs": {"enable_thinking": False},
            "chat_format": {"reasoning": "think", "tool_calls": "qwen3"},
            "max_reasoning_tokens": 9,
            "priority": 3,
            "cache_salt": "s",
        },
    )
    asked = service.requests(inference_pb2.GenerateRequest)[0].generation
    chat = asked.prompt.chat
    assert chat.tools[0].parameters == '{"b": 1, "a": 1152921504606846977}'
    assert (chat.tool_choice.named, chat.parallel_tool_calls, chat.max_reasoning_tokens) == ("f", False, 9)
    assert chat.template_arguments == '{"enable_thinking": false}'
    assert (chat.format.reasoning, chat.format.tool_calls) == (pb.REASONING_FORMAT_THINK, pb.TOOL_CALL_FORMAT_QWEN3)
    assert asked.constraint.json_schema == '{"b": 1, "a": 2}'
    assert (asked.n, asked.priority, asked.cache_salt, list(asked.stopping.stop_strings)) == (2, 3, "s", ["a", "b"])
    assert dict(asked.sampling.logit_bias) == {5: 1}
    assert (asked.sampling.top_k, asked.sampling.min_p, asked.sampling.presence_penalty) == (4, 0.25, 1)
    assert (asked.output.logprobs, asked.output.num_candidates) == (True, 2)


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({"store": True}, ""),
        ({"temperature": "hot"}, "temperature"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"stream_options": {}}, "stream_options"),
        ({"tool_choice": "f"}, "tool_choice"),
        ({"chat_format": {"reasoning": "loud"}}, "reasoning"),
        ({"chat_format": {"calls": "qwen3"}}, "chat_format"),
    ],
)
def test_what_cannot_be_is_refused_by_name(client: openai.OpenAI, extra: dict[str, Any], field: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="scripted", messages=HI, extra_body=extra)
    error = refused.value.body
    assert isinstance(error, dict)
    assert error["type"] == "invalid_request_error"
    assert field in (error["param"] or ""), error
    assert not field or field.rpartition(".")[2] in error["message"]


@pytest.mark.parametrize("path", ["responses", "embeddings"])
def test_other_endpoints_are_refused(address: str, path: str) -> None:
    answer = httpx.post(f"{address}/v1/{path}", json={})
    assert answer.status_code == 404
    assert "is not served" in answer.json()["error"]["message"]


def test_bodies_that_are_none(address: str) -> None:
    for body in (b"", b"{", b"[]", b"\xff", b'{"model": "m"}', b'{"model": "m", "model": "m"}'):
        answer = httpx.post(f"{address}/v1/chat/completions", content=body)
        assert answer.status_code == 400, body
        assert answer.json()["error"]["type"] == "invalid_request_error"
    large = httpx.post(f"{address}/v1/chat/completions", content=b" " * (16 * 1024 * 1024 + 1))
    assert large.status_code == 413


@pytest.mark.parametrize(
    ("endpoint", "field", "key"),
    [
        ("chat/completions", "generation.output.num_candidates", "top_logprobs"),
        ("completions", "generation.output.num_candidates", "logprobs"),
        ("completions", "generation.stopping.stop_strings[0]", "stop[0]"),
        ("completions", "generation.sampling.temperature", "temperature"),
        ("completions", "generation.n", "n"),
        ("completions", "generation.prompt.token_ids.ids[7]", "prompt[7]"),
        ("chat/completions", "generation.prompt.chat.messages[1].tool_calls[0].arguments",
         "messages[1].tool_calls[0].function.arguments"),
        ("chat/completions", "generation.prompt.chat.tools[3].parameters", "tools[3].function.parameters"),
        ("chat/completions", "generation.prompt.chat.template_arguments", "chat_template_kwargs"),
        ("chat/completions", "generation.constraint.json_schema", "response_format.json_schema.schema"),
    ],
)  # fmt: skip
def test_errors_name_the_keys_that_were_sent(
    address: str, service: ScriptedService, endpoint: str, field: str, key: str
) -> None:
    request = error_details_pb2.BadRequest()
    request.field_violations.add(field=field, description="is wrong")
    service.failures = [status(grpc.StatusCode.INVALID_ARGUMENT, f"{field} is wrong", request)]
    body = {"model": "scripted", **({"messages": HI} if "chat" in endpoint else {"prompt": "hi"})}
    error = httpx.post(f"{address}/v1/{endpoint}", json=body).json()["error"]
    assert (error["message"], error["param"]) == (f"{key} is wrong", key)


@pytest.mark.parametrize(
    ("extra", "param", "said"),
    [
        ({"n": -1}, "n", "its range is 0 to 4294967295"),
        ({"seed": 2**64}, "seed", "its range is 0 to 18446744073709551615"),
        ({"model": ""}, "model", "is empty"),
        ({"bogus": 1}, "bogus", "bogus"),
        ({"logit_bias": {"01": 1, "1": 2}}, "logit_bias", "'01'"),
        ({"response_format": {"type": "text", "json_schema": {"name": "x"}}}, "response_format.json_schema", "text"),
    ],
)
def test_what_is_wrong_is_said_with_its_limit(address: str, extra: dict[str, Any], param: str, said: str) -> None:
    answer = httpx.post(f"{address}/v1/completions", json={"model": "scripted", "prompt": "hi", **extra})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert said in error["message"]


def test_top_k_of_vllm(address: str, service: ScriptedService) -> None:
    body = {"model": "scripted", "prompt": "hi", "top_k": -1}
    assert httpx.post(f"{address}/v1/completions", json=body).status_code == 200
    assert service.requests(inference_pb2.GenerateRequest)[0].generation.sampling.top_k == 0


def test_what_is_not_there_is_said_in_openai_s_shape(address: str) -> None:
    for method, path, expected in (("GET", "/v1/completions", 405), ("POST", "/v1/nothing", 404)):
        answer = httpx.request(method, f"{address}{path}")
        assert answer.status_code == expected
        assert path in answer.json()["error"]["message"]


def test_a_body_that_breaks_off_is_no_news(address: str, caplog: pytest.LogCaptureFixture) -> None:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as broken:
        broken.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\n{")
        broken.shutdown(socket.SHUT_WR)
        while broken.recv(1000):  # until the gateway has done with it
            pass
    assert httpx.get(f"{address}/v1/models").status_code == 200
    assert caplog.records == []


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (
            status(grpc.StatusCode.INVALID_ARGUMENT, "no"),
            openai.BadRequestError,
        ),
        (status(grpc.StatusCode.UNAUTHENTICATED, "no"), openai.AuthenticationError),
        (status(grpc.StatusCode.PERMISSION_DENIED, "no"), openai.PermissionDeniedError),
        (status(grpc.StatusCode.NOT_FOUND, "no"), openai.NotFoundError),
        (status(grpc.StatusCode.RESOURCE_EXHAUSTED, "no"), openai.RateLimitError),
        (status(grpc.StatusCode.INTERNAL, "no"), openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_errors_are_openai_s(
    client: openai.OpenAI, service: ScriptedService, failure: Any, kind: type[openai.APIStatusError], is_stream: bool
) -> None:
    service.failures = [failure]
    with pytest.raises(kind) as refused:
        list(client.chat.completions.create(model="scripted", messages=HI, stream=is_stream))
    assert refused.value.message.endswith("no") or "no" in str(refused.value)


def test_an_error_in_the_middle_is_an_event(client: openai.OpenAI, service: ScriptedService) -> None:
    def script(request: inference_pb2.StreamGenerateRequest, context: grpc.ServicerContext) -> Responses:
        yield from list(says(pb.Part(content="half"))(request, context))[:-2]
        context.abort_with_status(status(grpc.StatusCode.INTERNAL, "broken"))

    service.streams = [script]
    with pytest.raises(openai.APIError, match="broken"):
        list(client.chat.completions.create(model="scripted", messages=HI, stream=True))


def test_a_caller_that_goes_away_ends_its_stream(address: str, service: ScriptedService) -> None:
    service.hang_after_started()
    body = {"model": "scripted", "messages": HI, "stream": True}
    with httpx.Client(timeout=20) as http, http.stream("POST", f"{address}/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        assert service.hanging.wait(20)
    assert service.ended.wait(20)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_caller_that_goes_away_before_anything_came_ends_its_call(
    address: str, service: ScriptedService, is_stream: bool
) -> None:
    def nothing(_request: inference_pb2.StreamGenerateRequest, context: grpc.ServicerContext) -> Responses:
        service.hang(context)
        yield from ()

    service.hangs = True
    service.streams = [nothing]
    host, port = address.removeprefix("http://").split(":")
    body = json.dumps({"model": "scripted", "messages": HI, "stream": is_stream}).encode()
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert service.hanging.wait(20)
    assert service.ended.wait(20)


def test_unavailable_says_when_to_try_again(client: openai.OpenAI, service: ScriptedService) -> None:
    service.failures = [unavailable("LOADING", 3600.0)]
    with pytest.raises(openai.InternalServerError) as refused:
        client.chat.completions.create(model="scripted", messages=HI)
    assert refused.value.status_code == 503
    assert refused.value.response.headers["retry-after"] == "3600"


@pytest.mark.slow
@pytest.mark.model
def test_a_real_model_behind_the_command() -> None:
    """`pagewire gateway` in front of SmolLM2: chats, schema, log-probabilities, and its end."""
    with serve(model="smollm2-135m", device="cpu", max_num_seqs=8) as service:
        command = [
            sys.executable,
            "-m",
            "pagewire.client",
            "gateway",
            "--listen",
            "127.0.0.1:0",
            "--target",
            service.address,
        ]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        try:
            said = process.stderr.readline()
            base_url = said.split()[1]
            with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
                name = next(iter(client.models.list())).id
                whole = client.chat.completions.create(model=name, messages=HI, temperature=0, max_tokens=20)
                stream = client.chat.completions.create(
                    model=name, messages=HI, temperature=0, max_tokens=20, stream=True
                )
                assert (
                    "".join(chunk.choices[0].delta.content or "" for chunk in stream)
                    == whole.choices[0].message.content
                )
                schema: Any = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "integer"}}}
                number = client.chat.completions.create(
                    model=name, messages=HI, response_format=schema, max_tokens=50, logprobs=True, top_logprobs=2
                )
                assert isinstance(json.loads(number.choices[0].message.content or ""), int)
                assert number.choices[0].logprobs is not None
                assert number.choices[0].logprobs.content
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) in (0, -signal.SIGTERM)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--listen", "8000"], "--listen is '8000'; it must be HOST:PORT"),
        (["--listen", "127.0.0.1:70000"], "it must be HOST:PORT"),
        (["--listen", "fd:999999"], "--listen is 'fd:999999', which is no socket that listens"),
        (["--listen", "fd:0"], "which is no socket that listens"),
        (["--listen", "127.0.0.1:0", "--parent-fd", "999999"], "--parent-fd 999999 is not an open descriptor"),
    ],
)
def test_what_it_cannot_listen_on(capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str) -> None:
    assert main(["gateway", *arguments]) == 1
    assert problem in capsys.readouterr().err


BEHIND_THE_RULE = ("--parent-fd", "999999")
"""What ends the command once it has let the address pass."""


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", ":0", "some.host:0"])
def test_an_address_open_to_others_is_refused_where_the_service_wants_no_keys(
    service: ScriptedService, capsys: pytest.CaptureFixture[str], listen: str
) -> None:
    command = ["gateway", "--listen", listen, "--target", service.address, *BEHIND_THE_RULE]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert f"listen = {listen!r} is open to other machines, and nothing says who may call: the service at" in said
    assert "answers callers who bring no key; give the service --api-keys-file FILE, or --insecure here" in said


def test_an_address_open_to_others_is_refused_where_nobody_can_be_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = ["gateway", "--listen", "0.0.0.0:0", "--target", f"127.0.0.1:{port}", *BEHIND_THE_RULE]
    assert main(command) == 1
    assert f"the service at 127.0.0.1:{port} cannot be asked whether it wants keys" in capsys.readouterr().err


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:0", "[::1]:0", "127.9.9.9:0"])
def test_loopback_addresses_and_the_operator_s_word_need_no_keys(
    service: ScriptedService, capsys: pytest.CaptureFixture[str], listen: str
) -> None:
    for words in (["--listen", listen], ["--listen", "0.0.0.0:0", "--insecure"]):
        assert main(["gateway", *words, "--target", service.address, *BEHIND_THE_RULE]) == 1
        assert "--parent-fd 999999 is not an open descriptor" in capsys.readouterr().err


@pytest.mark.slow
def test_an_address_open_to_others_stands_where_the_service_wants_keys(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """But not where the gateway lends its own to those who have none."""
    key, keys = "sk-0123456789abcdef0123456789abcdef", tmp_path / "keys"
    keys.write_text(f"admin:{key}\n")
    keys.chmod(0o600)
    with serve(api_keys_file=keys, operator_key=key) as keyed:
        command = ["gateway", "--listen", "0.0.0.0:0", "--target", keyed.address, *BEHIND_THE_RULE]
        assert main(command) == 1
        assert "--parent-fd 999999 is not an open descriptor" in capsys.readouterr().err
        assert main([*command, "--api-key", key]) == 1
        assert "bring no key, as --api-key (or PAGEWIRE_API_KEY) is lent to them" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.model
def test_langchain_s_chats_with_tools() -> None:
    """A call that must come, what it answers, and the answer to that; whole and streamed."""
    weather: dict[str, Any] = {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    }
    tools = [{"type": "function", "function": weather}]
    with serve(model="smollm2-135m", device="cpu", max_num_seqs=8, openai="127.0.0.1:0") as service:
        model = ChatOpenAI(
            base_url=service.said["openai_url"],
            api_key=SecretStr("none"),
            model="smollm2-135m",
            temperature=0.7,
            seed=3,
            max_completion_tokens=200,
            extra_body={"chat_format": {"tool_calls": "qwen3"}},
        )
        messages: list[BaseMessage] = [HumanMessage("What is the weather in Berlin?")]
        caller = model.bind_tools(tools, tool_choice="any", parallel_tool_calls=False)
        whole = caller.invoke(messages)
        (call,) = whole.tool_calls
        assert call["name"] == "get_weather"
        assert len(call["args"]["city"]) <= 12
        assert whole.response_metadata["finish_reason"] == "tool_calls"
        first, *others = caller.stream(messages)
        for chunk in others:
            first += chunk
        assert isinstance(first, AIMessageChunk)
        assert first.tool_calls == whole.tool_calls
        messages += [whole, ToolMessage("12 °C, rain", tool_call_id=call["id"])]
        assert model.bind_tools(tools).invoke(messages).content
