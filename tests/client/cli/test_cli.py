"""The command, in this process through `main`, against a scripted service."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from support.scripted_service import EOS, PROMPT_IDS, SEED, ScriptedService, status, unavailable

from pagewire.client import installed
from pagewire.client.__main__ import main
from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2

ANSWER = "Hello, wörld €"
NOWHERE = "127.0.0.1:1"

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def target(service: ScriptedService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGEWIRE_TARGET", service.address)
    monkeypatch.delenv("PAGEWIRE_API_KEY", raising=False)


def generation(service: ScriptedService) -> pb.Generation:
    (request,) = service.requests(inference_pb2.StreamGenerateRequest)
    message: pb.Generation = request.generation
    return message


def piped(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_generate_prints_the_answer(service: ScriptedService, capsys: Captured) -> None:
    assert main(["generate", "hi"]) == 0
    assert capsys.readouterr() == (f"{ANSWER}\n", "")
    chat = generation(service).prompt.chat
    assert [(each.role, each.content) for each in chat.messages] == [(pb.CHAT_ROLE_USER, "hi")]
    assert generation(service).model == "scripted"


def test_generate_json_is_one_object(service: ScriptedService, capsys: Captured) -> None:
    assert main(["generate", "--json", "--max-tokens", "5", "--seed", "3", "hi"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    said = json.loads(lines[0])
    assert said["text"] == "Hello"
    assert said["token_ids"] == list(b"Hello")
    assert (said["finish_reason"], said["matched"]) == ("length", None)
    assert said["usage"] == {"prompt_tokens": 3, "cached_tokens": 0, "completion_tokens": 5}
    assert said["timings"]["prefill_ms"] == 12
    assert 0 < said["timings"]["ttft_ms"] <= said["timings"]["total_ms"]
    assert said["timings"]["decode_tokens_per_s"] is None or said["timings"]["decode_tokens_per_s"] > 0
    assert (said["request_id"], said["seed"], said["model"]) == ("scripted", 3, "scripted")
    assert "outputs" not in said


def test_several_outputs(capsys: Captured) -> None:
    assert main(["generate", "--json", "--n", "2", "--max-tokens", "2", "hi"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [output["text"] for output in said["outputs"]] == ["He", "He"]
    assert main(["generate", "--n", "2", "--max-tokens", "2", "hi"]) == 0
    assert capsys.readouterr().out == "He\n---\nHe\n"


def test_every_flag_reaches_its_field(service: ScriptedService, capsys: Captured) -> None:
    flags = [
        "--max-tokens",
        "9",
        "--min-tokens",
        "1",
        "--temperature",
        "0",
        "--top-k",
        "4",
        "--top-p",
        "0.5",
        "--min-p",
        "0.25",
        "--presence-penalty",
        "1",
        "--frequency-penalty",
        "-1",
        "--repetition-penalty",
        "1.5",
        "--logit-bias",
        "5=1.5,7=-100",
        "--allowed-token-ids",
        "5,7,9",
        "--banned-token-ids",
        "9",
        "--bad-word",
        "no",
        "--bad-word",
        "never",
        "--stop-token-ids",
        "3,4",
        "--include-stop",
        "--logprobs",
        "--candidates",
        "2",
        "--logprob-token-ids",
        "5",
        "--processed-logprobs",
        "--prompt-logprobs",
        "--prompt-candidates",
        "1",
        "--seed",
        "5",
        "--priority",
        "2",
        "--cache-salt",
        "s",
        "--stop",
        "A",
        "--stop",
        "B",
        "--ignore-eos",
        "--regex",
        ".*",
        "--system",
        "brief",
    ]
    assert main(["generate", *flags, "--template-arguments", '{"enable_thinking": false}', "hi"]) == 0
    expected = pb.Generation(
        model="scripted",
        sampling=pb.Sampling(
            temperature=0,
            top_k=4,
            top_p=0.5,
            min_p=0.25,
            presence_penalty=1,
            frequency_penalty=-1,
            repetition_penalty=1.5,
            logit_bias={5: 1.5, 7: -100},
            allowed_token_ids=[5, 7, 9],
            banned_token_ids=[9],
            bad_words=["no", "never"],
            seed=5,
        ),
        stopping=pb.Stopping(
            max_tokens=9,
            min_tokens=1,
            stop_strings=["A", "B"],
            stop_token_ids=[3, 4],
            include_stop=True,
            ignore_eos=True,
        ),
        output=pb.Output(
            logprobs=True,
            num_candidates=2,
            logprob_token_ids=[5],
            processed_logprobs=True,
            prompt_logprobs=True,
            num_prompt_candidates=1,
        ),
        priority=2,
        cache_salt="s",
        constraint=pb.Constraint(regex=".*"),
    )
    chat = expected.prompt.chat
    chat.messages.add(role=pb.CHAT_ROLE_SYSTEM, content="brief")
    chat.messages.add(role=pb.CHAT_ROLE_USER, content="hi")
    chat.template_arguments = '{"enable_thinking": false}'
    assert generation(service) == expected


@pytest.mark.parametrize(
    ("flag", "value", "what"),
    [
        ("--logit-bias", "5", "is not bias such as"),
        ("--logit-bias", "5=x", "is not bias such as"),
        ("--logit-bias", "5=1,5=2", "each id once"),
        ("--allowed-token-ids", "1,x", "is not token ids such as"),
        ("--banned-token-ids", "", "is not token ids such as"),
        ("--candidates", "x", "invalid int"),
    ],
)
def test_a_flag_that_cannot_be_read_says_what_it_takes(flag: str, value: str, what: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["generate", flag, value, "hi"])
    assert ended.value.code == 2
    assert what in capsys.readouterr().err


def script_with_logprobs(_request: object, _context: object) -> list[inference_pb2.StreamGenerateResponse]:
    nothing = pb.Candidate(id=7, bytes=b"\xff", logprob=float("-inf"))
    token = pb.Token(
        id=5, text=b"x", logprob=-0.5, candidates=[pb.Candidate(id=5, bytes=b"x", logprob=-0.5)], named=[nothing]
    )
    prompt = [pb.Token(id=1, text=b"hi"), pb.Token(id=2, text=b"!", logprob=-2.25)]
    return [
        inference_pb2.StreamGenerateResponse(started=pb.Started(prompt_tokens=2)),
        inference_pb2.StreamGenerateResponse(prompt_tokens=pb.PromptTokens(tokens=prompt)),
        inference_pb2.StreamGenerateResponse(delta=pb.Delta(tokens=[token], parts=[pb.Part(content="x")])),
        inference_pb2.StreamGenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_LENGTH)),
        inference_pb2.StreamGenerateResponse(usage=pb.Usage()),
    ]


def test_log_probabilities_are_a_table_for_people_and_json_for_scripts(
    service: ScriptedService, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.streams = [script_with_logprobs] * 3  # type: ignore[list-item]
    assert main(["generate", "--logprobs", "hi"]) == 0
    table = capsys.readouterr().out
    assert table.startswith("x\n")
    for shown in ("prompt", "-2.2500", "output 0", "-0.5000", "'x' -0.500", "-inf"):
        assert shown in table
    assert main(["generate", "--json", "--logprobs", "hi"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["tokens"] == [
        {
            "id": 5,
            "text": "x",
            "logprob": -0.5,
            "candidates": [{"id": 5, "bytes": [120], "logprob": -0.5}],
            "named": [{"id": 7, "bytes": [255], "logprob": -9999.0}],
        }
    ]
    assert [token["logprob"] for token in said["prompt_tokens"]] == [None, -2.25]
    piped(monkeypatch, "one\n")
    assert main(["chat", "--logprobs"]) == 0
    assert "-0.5000" in capsys.readouterr().out


def test_raw_text_and_models_without_a_template(service: ScriptedService, capsys: Captured) -> None:
    assert main(["generate", "--raw", "hi"]) == 0
    service.chat = False
    assert main(["generate", "hi"]) == 0
    requests = service.requests(inference_pb2.StreamGenerateRequest)
    assert [request.generation.prompt.text for request in requests] == ["hi", "hi"]
    for flag, value in (("--system", "x"), ("--system", ""), ("--template-arguments", "{}")):
        assert main(["generate", flag, value, "hi"]) == 1
        assert flag in capsys.readouterr().err


def test_token_ids(service: ScriptedService, capsys: Captured) -> None:
    assert main(["generate", "--ids", ",".join(map(str, PROMPT_IDS))]) == 0
    assert list(generation(service).prompt.token_ids.ids) == PROMPT_IDS


def test_several_prompts_in_order(capsys: Captured) -> None:
    assert main(["generate", "--max-tokens", "2", "one", "two"]) == 0
    assert capsys.readouterr().out == "==> 1: one <==\nHe\n\n==> 2: two <==\nHe\n"


def test_several_prompts_as_json_lines(service: ScriptedService, capsys: Captured) -> None:
    prompts = [f"prompt {i}" for i in range(10)]
    assert main(["generate", "--json", "--concurrency", "3", "--max-tokens", "2", *prompts]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["index"] for each in said] == list(range(10))
    assert {each["text"] for each in said} == {"He"}


def test_one_failing_prompt_is_reported_and_loses_no_other(service: ScriptedService, capsys: Captured) -> None:
    service.streams = [
        lambda _request, context: context.abort_with_status(status(grpc.StatusCode.INVALID_ARGUMENT, "too long"))
    ]
    assert main(["generate", "--json", "--concurrency", "1", "--max-tokens", "2", "one", "two"]) == 1
    out, err = capsys.readouterr()
    first, second = (json.loads(line) for line in out.splitlines())
    assert first == {"index": 0, "error": {"type": "InvalidRequest", "message": "too long", "field": ""}}
    assert second["text"] == "He"
    assert err == "pagewire: prompt 1: too long\n"


def test_standard_input_is_a_prompt_per_line(
    service: ScriptedService, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, "one\n\ntwo\r\n")
    assert main(["generate", "--raw", "--json", "--max-tokens", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    prompts = {request.generation.prompt.text for request in service.requests(inference_pb2.StreamGenerateRequest)}
    assert prompts == {"one", "two"}


def test_a_dash_is_all_of_standard_input(service: ScriptedService, monkeypatch: pytest.MonkeyPatch) -> None:
    piped(monkeypatch, "one\ntwo\n")
    assert main(["generate", "--raw", "-"]) == 0
    assert generation(service).prompt.text == "one\ntwo\n"


def test_prompts_from_files(service: ScriptedService, capsys: Captured, tmp_path: Path) -> None:
    lines = tmp_path / "prompts.txt"
    lines.write_text('one\n{"prompt": "as it is"}\n')
    assert main(["generate", "--raw", "--concurrency", "1", "--file", str(lines)]) == 0
    objects = tmp_path / "prompts.jsonl"
    objects.write_text(
        '{"prompt": "two"}\n{"token_ids": [1000, 1001, 1002]}\n'
        '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "three"}]}\n'
    )
    assert main(["generate", "--raw", "--concurrency", "1", "--file", str(objects)]) == 0
    prompts = [request.generation.prompt for request in service.requests(inference_pb2.StreamGenerateRequest)]
    assert [prompt.text for prompt in prompts[:3]] == ["one", '{"prompt": "as it is"}', "two"]
    assert list(prompts[3].token_ids.ids) == PROMPT_IDS
    assert [message.content for message in prompts[4].chat.messages] == ["s", "three"]


def test_conversations_from_a_file_have_all_that_a_chat_has(
    service: ScriptedService, capsys: Captured, tmp_path: Path
) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get", "arguments": '{"b": 1.0, "a": 2}'}}
    line = {
        "messages": [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": ""},
        ],
        "tools": [{"type": "function", "function": {"name": "get", "parameters": {"b": 1, "a": 2**60 + 1}}}],
        "add_generation_prompt": False,
    }
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps(line))
    typed = '{"b": 1e0, "a": 9007199254740993}'
    assert main(["generate", "--file", str(file), "--template-arguments", typed]) == 0
    chat = generation(service).prompt.chat
    assert not chat.messages[0].HasField("content")
    assert chat.messages[0].tool_calls[0].arguments == '{"b": 1.0, "a": 2}'
    assert chat.messages[1].HasField("content")
    assert chat.tools[0].parameters == '{"b": 1, "a": 1152921504606846977}'
    assert chat.template_arguments == typed
    assert chat.HasField("add_generation_prompt")
    assert main(["generate", "--file", str(file), "--system", "x"]) == 1
    assert "--system cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: expected an object with just one of prompt, messages, token_ids"),
        ('{"prompt": "x", "temperature": 0}', "beside prompt it has 'temperature', which are flags here or not known"),
        ('{"prompt": 5}', "line 2: prompt is 5; it must be text"),
        ('{"messages": []}', "line 2: messages is []; it must be a list of at least one"),
        ('{"token_ids": [1, "x"]}', "line 2: token_ids is [1, 'x']; it must be a list of integers of at least one"),
        ('{"token_ids": [true]}', "line 2: token_ids is [True]; it must be"),
        ('{"messages": ["x"]}', "line 2: messages[0] must be a Message or a mapping, not 'x'"),
        ('{"messages": [{"role": "user", "contents": "x"}]}', "line 2: messages[0].contents is not known"),
        (
            '{"messages": [{"role": "user", "content": "x"}], "tools": [{"name": "f"}]}',
            "line 2: tools[0].name is not known",
        ),
        ('{"messages": [{"role": "user", "content": "x"}], "n": 2}', "beside messages it has 'n', which are flags"),
        (
            '{"messages": [{"role": "user", "content": "x"}], "template_arguments": [1]}',
            "line 2: template_arguments must",
        ),
        ('{"messages": [{"role": "user", "role": "tool"}]}', "line 2: not JSON: the key 'role' stands twice"),
        ('{"messages": [{"role": "user", "content": "x"}], "template_arguments": {"a": NaN}}', "line 2: not JSON: NaN"),
        ('{"token_ids": []}', "line 2: token_ids is []; it must be a list of integers of at least one"),
    ],
)
def test_a_wrong_line_is_named(
    service: ScriptedService, capsys: Captured, tmp_path: Path, line: str, problem: str
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "fine"}}\n{line}\n')
    assert main(["generate", "--file", str(file)]) == 1
    assert problem in capsys.readouterr().err
    assert service.seen == []


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--file", "/does/not/exist"], "--file '/does/not/exist' cannot be read"),
        (["--ids", "1", "prompt"], "not from two of them"),
        (["--concurrency", "0", "hi"], "--concurrency is 0"),
        (["--model", "other", "hi"], "model 'other' is not served"),
        (["--seed", "-1", "hi"], "generation.sampling.seed is -1"),
        (["--tls-ca", "/does/not/exist", "hi"], "ca_file '/does/not/exist' cannot be read"),
    ],
)
def test_errors_are_one_line_and_status_1(capsys: Captured, arguments: list[str], problem: str) -> None:
    assert main(["generate", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert problem in err
    assert re.fullmatch(r"pagewire: [^\n]+\n", err)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["generate", "--temperature", "warm", "hi"],
        ["generate", "--ids", "1,x"],
        ["generate", "--ids", ","],
        ["generate", "--timeout", "0", "hi"],
        ["generate", "--template-arguments", "[]", "hi"],
        ["generate", "--set", "nonsense", "hi"],
        ["health", "--nonsense"],
    ],
)
def test_wrong_usage_is_status_2(capsys: Captured, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: pagewire" in capsys.readouterr().err


def test_no_prompt(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    piped(monkeypatch, "\n\n")
    assert main(["generate"]) == 1
    assert capsys.readouterr().err == "pagewire: there is no prompt\n"


def test_nobody_listens(capsys: Captured) -> None:
    for command in (["generate", "hi"], ["chat"], ["health"]):
        assert main([*command, "--target", NOWHERE]) == 1
        assert capsys.readouterr().err.startswith(
            f"pagewire: no service answers at {NOWHERE} (Connection refused); start"
        )


def test_a_service_that_drains(service: ScriptedService, capsys: Captured) -> None:
    service.failures = [unavailable("DRAINING")]
    assert main(["generate", "hi"]) == 1
    assert capsys.readouterr().err == "pagewire: away\n"


def test_a_timeout(service: ScriptedService, capsys: Captured) -> None:
    service.hang_after_started()
    assert main(["generate", "--timeout", "0.2", "hi"]) == 1
    assert "pagewire: " in capsys.readouterr().err
    assert service.ended.wait(10)


def test_the_api_key(service: ScriptedService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGEWIRE_API_KEY", "from-the-environment")
    assert main(["generate", "hi"]) == 0
    assert {each["authorization"] for each in service.metadata} == {"Bearer from-the-environment"}


def test_health(service: ScriptedService, capsys: Captured) -> None:
    assert main(["health"]) == 0
    assert capsys.readouterr().out == "SERVING\n"
    service.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert main(["health", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"target": service.address, "service": "", "status": "NOT_SERVING"}
    assert main(["health", "--service", "nonsense"]) == 1


def test_models(service: ScriptedService, capsys: Captured) -> None:
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"scripted +llama +bfloat16 +4,096 tokens +token ids, text, chat", out)
    assert "smollm2-135m" in out
    assert main(["models", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["served"][0]["limits"]["max_model_len"] == 4096
    assert "smollm2-135m" in {model["name"] for model in said["known"]}
    assert (said["served_error"], said["known_error"]) == ("", "")


def test_models_without_a_service(capsys: Captured) -> None:
    assert main(["models", "--json", "--target", NOWHERE]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["served"] is None
    assert NOWHERE in said["served_error"]
    assert said["known"]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the client alone were installed."""
    real = installed.version
    parts = {*installed.requirements("scheduler"), *installed.requirements("worker")}
    extra = parts - installed.requirements("").keys()
    monkeypatch.setattr(installed, "version", lambda name: None if name in extra else real(name))


@pytest.mark.usefixtures("bare")
def test_commands_without_the_services_parts(service: ScriptedService, capsys: Captured) -> None:
    assert main(["generate", "--max-tokens", "5", "hi"]) == 0
    assert capsys.readouterr().out == "Hello\n"
    assert main(["serve", "--model", "x"]) == 1
    assert re.fullmatch(r"pagewire: serve needs .*msgspec.*: pip install 'pagewire\[all\]'\n", capsys.readouterr().err)
    assert main(["generate", "--spawn", "hi"]) == 1
    assert "pip install 'pagewire[all]'" in capsys.readouterr().err
    assert main(["models"]) == 0
    assert "pip install 'pagewire[scheduler]'" in capsys.readouterr().err
    assert main(["models", "--target", NOWHERE]) == 1


@pytest.mark.usefixtures("bare")
def test_doctor_without_the_services_parts(capsys: Captured) -> None:
    assert main(["doctor", "--json", "--target", NOWHERE]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["can_serve"] is False
    assert said["packages"]["worker"]["torch"] is None
    assert said["packages"]["client"]["grpcio"]
    assert (said["worker"], said["models"]) == (None, None)
    assert "pip install 'pagewire[worker]'" in said["worker_error"]
    assert len(said["advice"]) == 2
    assert main(["doctor"]) == 0
    assert re.search(r"scheduler +grpcio-reflection MISSING", capsys.readouterr().out)


def test_doctor_with_everything(service: ScriptedService, capsys: Captured) -> None:
    assert main(["doctor", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["can_serve"] is True
    assert said["service"] == {"target": service.address, "status": "SERVING", "model": "scripted", "error": ""}
    assert {device["device"] for device in said["worker"]["devices"]} >= {"cpu", "sim"}
    assert said["models"]["cache_dir"]
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"attention on cpu +\S+: in use", out)
    assert re.search(r"state +SERVING", out)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["-c", "import sys; sys.exit('it broke')"], "ended with status 1: it broke"),
        (["-c", "print('[1]')"], "which is no JSON object"),
        (["-c", "print('nonsense')"], "which is no JSON object"),
    ],
)
def test_a_part_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, command: list[str], reason: str) -> None:
    import subprocess

    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda _command, **options: real([sys.executable, *command], **options))
    answer: Any = installed.known_models()
    assert isinstance(answer, installed.Absent)
    assert reason in answer.reason


def test_version(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"pagewire {installed.version('pagewire')}\n"


def test_the_answer_ends_where_it_should(service: ScriptedService, capsys: Captured) -> None:
    assert main(["generate", "--json", "--stop", "wör", "hi"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["text"], said["finish_reason"], said["matched"]) == ("Hello, ", "stop_string", "wör")
    assert (said["seed"], 999) == (SEED, EOS)
