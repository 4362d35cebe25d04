"""Log-probabilities through the whole service are transformers', in fp32: of the tokens, the likeliest, named ids, and
of the prompt, whether or not the prefix cache holds it."""

from collections.abc import Iterator

import pytest
import torch
from support.checkpoints import Checkpoint, build_hf_model, save_checkpoint
from support.processors import judged
from support.service import LIMIT_S, Service, generation, serve
from support.torch_threads import torch_threads

from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2
from pagewire.wire.columns import pack
from pagewire.wire.logits import LogitControls
from pagewire.wire.plan import Admit
from pagewire.wire.sampling import SamplingParams

MAX_ERROR = 1e-4
NAMED = (250, 3, 3, 77)
PROMPT = [(7 * i * i + 3 * i) % 256 for i in range(150)]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return save_checkpoint(build_hf_model("qwen3-tied"), tmp_path_factory.mktemp("logprobs"))


@pytest.fixture(scope="module", params=["native", "torch"])
def service(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Iterator[Service]:
    with serve(
        model=str(checkpoint.directory),
        device="cpu",
        dtype="float32",
        cpu_kernels=request.param,
        num_threads=1,
        max_model_len=256,
        block_size=16,
    ) as running:
        yield running


def logits_of(checkpoint: Checkpoint, ids: list[int]) -> torch.Tensor:
    with torch_threads(1), torch.inference_mode():
        logits: torch.Tensor = checkpoint.hf_model(torch.tensor([ids]), use_cache=False).logits[0].float()
    return logits


def check_token(token: pb.Token, logprobs_V: torch.Tensor, num_candidates: int, named: tuple[int, ...]) -> None:
    assert abs(token.logprob - float(logprobs_V[token.id])) < MAX_ERROR
    top = logprobs_V.topk(num_candidates)
    assert len(token.candidates) == num_candidates
    for candidate, expected in zip(token.candidates, top.values.tolist(), strict=True):
        assert abs(candidate.logprob - expected) < MAX_ERROR
        assert abs(candidate.logprob - float(logprobs_V[candidate.id])) < MAX_ERROR
    assert [each.id for each in token.named] == list(named)
    for each in token.named:
        assert abs(each.logprob - float(logprobs_V[each.id])) < MAX_ERROR


def ask(service: Service, prompt: list[int] = PROMPT, **output: object) -> inference_pb2.GenerateResponse:
    request = generation(
        prompt,
        sampling={"temperature": 1.3, "seed": 5, "repetition_penalty": 1.5, "logit_bias": {9: 3.0}},
        stopping={"max_tokens": 30, "ignore_eos": True},
        output=pb.Output(**output),  # type: ignore[arg-type]
    )
    return service.inference.Generate(inference_pb2.GenerateRequest(generation=request), timeout=LIMIT_S)


@pytest.mark.parametrize("is_processed", [False, True])
def test_of_the_output(service: Service, checkpoint: Checkpoint, is_processed: bool) -> None:
    answer = ask(service, logprobs=True, num_candidates=20, logprob_token_ids=NAMED, processed_logprobs=is_processed)
    tokens = answer.outputs[0].tokens
    ids = [token.id for token in tokens]
    assert len(ids) == 30
    logits = logits_of(checkpoint, PROMPT + ids)[len(PROMPT) - 1 : -1]
    for index, token in enumerate(tokens):
        logits_V = logits[index]
        if is_processed:
            bias = LogitControls(bias_ids=pack([9]), bias_values=torch.tensor([3.0]).numpy().tobytes())
            params = SamplingParams(repetition_penalty=1.5)
            known = pack(PROMPT + ids[:index])
            logits_V = judged(logits_V, Admit(0, known, len(PROMPT), 0, b"", params, bias))
        check_token(token, logits_V.log_softmax(0), 20, NAMED)


@pytest.mark.parametrize("length", [1, 2, 64, 65, 129, 150])
def test_of_the_prompt_also_where_it_is_cached(service: Service, checkpoint: Checkpoint, length: int) -> None:
    prompt = PROMPT[:length]
    plain = ask(service, prompt)
    assert not plain.prompt_tokens
    answers = [ask(service, prompt, num_prompt_candidates=20, prompt_logprobs=True) for _ in range(2)]
    logprobs = logits_of(checkpoint, prompt).log_softmax(1)
    for answer in answers:
        assert answer.usage.cached_tokens == 0
        assert [token.id for token in answer.prompt_tokens] == prompt
        assert not answer.prompt_tokens[0].HasField("logprob")
        for position, token in enumerate(answer.prompt_tokens[1:], start=1):
            check_token(token, logprobs[position - 1], 20, ())
        assert [t.id for t in answer.outputs[0].tokens] == [t.id for t in plain.outputs[0].tokens]
        assert not answer.outputs[0].tokens[0].HasField("logprob")
    again = ask(service, prompt)
    assert again.usage.cached_tokens == (length - 1) // 16 * 16 or again.usage.cached_tokens == length // 16 * 16


def test_only_the_first_of_several_outputs_computes_the_prompt_again(service: Service) -> None:
    request = generation(
        PROMPT, n=4, stopping={"max_tokens": 3, "ignore_eos": True}, output=pb.Output(prompt_logprobs=True)
    )
    before = service.wait_for_load(lambda load: load.used_blocks == 0)
    answer = service.inference.Generate(inference_pb2.GenerateRequest(generation=request), timeout=LIMIT_S)
    assert len(answer.prompt_tokens) == len(PROMPT)
    # What the engine said of itself may be older than the request before: it is only ever less.
    in_whole_blocks = len(PROMPT) // 16 * 16
    service.wait_for_load(lambda load: load.cached_prompt_tokens >= before.cached_prompt_tokens + 3 * in_whole_blocks)
