"""smg, a gateway that speaks vLLM's gRPC service, started as its users start it and called by OpenAI's client."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import openai
import pytest
from support.service import LIMIT_S, Service, serve

pytest.importorskip("smg", reason="smg has wheels for Linux on x86-64 alone")

pytestmark = [pytest.mark.slow, pytest.mark.model]

MODEL = "smollm2-135m"
QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    events = f"ipc://{tmp_path_factory.mktemp('kv')}/events"
    with serve(model=MODEL, device="cpu", max_num_seqs=8, vllm_grpc=True, kv_events=events) as running:
        yield running


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What smg says."""
    return tmp_path_factory.mktemp("smg") / "log"


@pytest.fixture(scope="module")
def client(service: Service, log: Path) -> Iterator[openai.OpenAI]:
    with closing(socket.create_server(("127.0.0.1", 0))) as one, closing(socket.create_server(("127.0.0.1", 0))) as two:
        port, metrics = one.getsockname()[1], two.getsockname()[1]
    command = [str(Path(sys.executable).parent / "smg")]
    if not Path(command[0]).is_file():
        command = [sys.executable, "-m", "smg"]
    options = {"host": "127.0.0.1", "port": port, "prometheus-host": "127.0.0.1", "prometheus-port": metrics}
    options |= {"worker-urls": f"grpc://{service.address}", "log-level": "info"}
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    with log.open("w") as out:
        process = subprocess.Popen([*command, "launch", *flags], stdout=out, stderr=subprocess.STDOUT)
    try:
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=LIMIT_S) as connected:
            deadline = time.monotonic() + LIMIT_S
            while not _answers(connected):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield connected
    finally:
        process.terminate()
        process.wait(20)


def _answers(client: openai.OpenAI) -> bool:
    """Whether it has found the worker and made a tokenizer of what the worker sent."""
    try:
        client.with_options(max_retries=0).chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=1)
    except (openai.APIConnectionError, openai.APIStatusError):
        return False
    return True


def test_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_completion_tokens=24)
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == (ANSWER, "stop")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (37, 8)
    assert [model.id for model in client.models.list()] == [MODEL]


def test_a_chat_streams(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=QUESTION, temperature=0, max_completion_tokens=24, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(said) == ANSWER
    assert len([text for text in said if text]) > 2
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8


def test_outputs_stops_and_log_probabilities(client: openai.OpenAI) -> None:
    several = client.chat.completions.create(
        model=MODEL, messages=QUESTION, n=2, seed=3, max_completion_tokens=3, logprobs=True, top_logprobs=2
    )
    assert [choice.index for choice in several.choices] == [0, 1]
    assert len({choice.message.content for choice in several.choices}) == 2
    for choice in several.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert [len(token.top_logprobs) for token in choice.logprobs.content] == [2, 2, 2]
    again = client.chat.completions.create(model=MODEL, messages=QUESTION, n=2, seed=3, max_completion_tokens=3)
    assert [each.message.content for each in again.choices] == [each.message.content for each in several.choices]
    stopped = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_completion_tokens=24, stop=["Paris"]
    )
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == (
        "The capital of France is ",
        "stop",
    )


def test_a_json_schema_and_a_call_that_must_come(client: openai.OpenAI) -> None:
    city = {"type": "string", "maxLength": 8, "pattern": "^[A-Z][a-z]+$"}
    schema = {"type": "object", "properties": {"city": city}, "required": ["city"], "additionalProperties": False}
    held: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema}}
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_completion_tokens=60, response_format=held
    )
    assert '"Paris"' in (answer.choices[0].message.content or "")
    tools: Any = [{"type": "function", "function": {"name": "look_up", "parameters": schema}}]
    named: Any = {"type": "function", "function": {"name": "look_up"}}
    called = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_completion_tokens=60, tools=tools, tool_choice=named
    )
    (call,) = called.choices[0].message.tool_calls or ()
    assert call.type == "function"
    assert call.function.name == "look_up"
    assert "Paris" in call.function.arguments


def test_a_stream_that_is_left_ends_in_the_engine(client: openai.OpenAI, service: Service) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_completion_tokens=4000, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    service.wait_for_load(lambda load: load.running_sequences == 1)
    stream.close()
    service.wait_for_load(lambda load: load.running_sequences == 0)


def test_it_follows_the_cache(client: openai.OpenAI, log: Path) -> None:
    long: list[Any] = [{"role": "user", "content": "word " * 100}]
    client.chat.completions.create(model=MODEL, messages=long, max_completion_tokens=1)
    deadline = time.monotonic() + LIMIT_S
    while "Learned block_size from KV event" not in (said := log.read_text()):
        assert time.monotonic() < deadline, said
        time.sleep(0.05)


def test_what_the_worker_refuses_reaches_the_caller(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model=MODEL, messages=QUESTION, max_completion_tokens=5, extra_body={"regex": "(unclosed"}
        )
    assert "sampling_params.regex" in str(refused.value)
