"""A real model behind the whole service: files, worker, engine, frontend and a client that has nothing but the stub."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.checkpoints import build_hf_model, save_checkpoint
from support.service import LIMIT_S, Service, generation, ids_of, serve, stream_request

from pagewire.client.__main__ import main
from pagewire.v1 import generation_pb2, inference_pb2, model_pb2, model_pb2_grpc

STUB_ALONE = """
import sys
import grpc
from pagewire.v1 import generation_pb2, inference_pb2, inference_pb2_grpc

with grpc.insecure_channel(sys.argv[1]) as channel:
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    question = generation_pb2.ChatMessage(role=generation_pb2.CHAT_ROLE_USER, content="What is the capital of France?")
    request = inference_pb2.StreamGenerateRequest(
        generation=generation_pb2.Generation(
            prompt=generation_pb2.Prompt(chat=generation_pb2.Chat(messages=[question])),
            sampling=generation_pb2.Sampling(temperature=0),
            stopping=generation_pb2.Stopping(max_tokens=32),
        )
    )
    events = list(stub.StreamGenerate(request, timeout=60))
kinds = [event.WhichOneof("event") for event in events]
assert kinds[0] == "started" and kinds[-2:] == ["finished", "usage"] and set(kinds[1:-2]) == {"delta"}, kinds
print(b"".join(token.text for event in events for token in event.delta.tokens).decode())
ours = {name for name in sys.modules if name.startswith("pagewire.") and not name.startswith("pagewire.v1")}
assert not ours, ours
"""


@pytest.fixture(scope="module")
def smollm2() -> Iterator[Service]:
    with serve(model="smollm2-135m", device="cpu", max_num_seqs=8) as service:
        yield service


@pytest.mark.slow
def test_a_checkpoint_served_says_what_transformers_says(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(build_hf_model("qwen3-tied"), tmp_path)
    prompts = [[(7 * i * i + 3 * i + 11 * p) % 256 for i in range(20 + 9 * p)] for p in range(4)]
    with serve(model=str(checkpoint.directory), device="cpu", dtype="float32", num_threads=1) as service:
        stopping = {"max_tokens": 64, "ignore_eos": True}
        calls = [
            service.inference.StreamGenerate(stream_request(prompt, stopping=stopping, sampling={"temperature": 0.0}))
            for prompt in prompts
        ]
        for prompt, call in zip(prompts, calls, strict=True):
            ids = torch.tensor([prompt])
            # Without a mask, generate would take token 0 in the prompt for padding.
            output = checkpoint.hf_model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=64,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
            assert ids_of(call) == output[0, len(prompt) :].tolist()


@pytest.mark.slow
@pytest.mark.model
def test_the_generated_stub_alone_is_enough(smollm2: Service) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STUB_ALONE, smollm2.address], capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


@pytest.mark.slow
@pytest.mark.model
def test_generate_json_is_one_object_with_everything(smollm2: Service, capsys: pytest.CaptureFixture[str]) -> None:
    question = "What is the capital of France?"
    assert main(["generate", "--target", smollm2.address, "--temperature", "0", "--json", question]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert "Paris" in answer["text"]
    assert answer["finish_reason"] == "eos"
    assert len(answer["token_ids"]) == answer["usage"]["completion_tokens"]
    assert answer["usage"]["prompt_tokens"] > 10
    assert answer["timings"]["ttft_ms"] > 0
    assert answer["timings"]["decode_tokens_per_s"] > 0


@pytest.mark.slow
@pytest.mark.model
def test_text_streams_whole_and_stops_where_it_should(smollm2: Service) -> None:
    whole = smollm2.inference.Generate(
        inference_pb2.GenerateRequest(
            generation=generation(
                text="The quick brown fox", sampling={"temperature": 0.0}, stopping={"max_tokens": 40}
            )
        ),
        timeout=LIMIT_S,
    ).outputs[0]
    assert b"".join(token.text for token in whole.tokens).decode() == whole.text
    stop = whole.text[20:26]
    request = stream_request(
        text="The quick brown fox",
        sampling={"temperature": 0.0},
        stopping={"max_tokens": 40, "stop_strings": [stop]},
    )
    events = list(smollm2.inference.StreamGenerate(request, timeout=LIMIT_S))
    text = b"".join(token.text for event in events for token in event.delta.tokens).decode()
    assert text == whole.text[: whole.text.index(stop)]
    finished = next(event.finished for event in events if event.HasField("finished"))
    assert finished.reason == generation_pb2.FINISH_REASON_STOP_STRING
    assert finished.stop_string == stop
    smollm2.wait_for_load(lambda load: load.used_blocks == 0)


@pytest.mark.slow
@pytest.mark.model
def test_a_conversation_finds_its_prefix_in_the_cache(smollm2: Service) -> None:
    ids = [300 + i for i in range(200)]
    for expected in (0, 192):  # six whole blocks of 32
        events = list(
            smollm2.inference.StreamGenerate(stream_request(ids, stopping={"max_tokens": 2}), timeout=LIMIT_S)
        )
        assert events[0].started.cached_tokens == expected


@pytest.mark.slow
@pytest.mark.model
def test_the_model_describes_itself(smollm2: Service) -> None:
    stub = model_pb2_grpc.ModelServiceStub(smollm2.channel)
    model = stub.GetModel(model_pb2.GetModelRequest(), timeout=LIMIT_S).model
    assert (model.name, model.architecture) == ("smollm2-135m", "llama")
    assert model.tokenizer_digest.startswith("sha256:")
    assert model.weights_digest.startswith("sha256-sampled:")
    assert model.capabilities.chat
    assert model.limits.vocab_size == 49152
    assert model.limits.max_kv_tokens > 0
    assert model.exact_continuation
