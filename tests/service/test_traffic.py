"""Everything that a fast path skips, reuses, records or keys, under random traffic through the whole service.

Real engine, real worker, real gRPC. The service's limits are drawn too: few slots, blocks for little more than one
sequence, so that sequences are preempted and blocks change hands, and chunks from one token. Each answer is scored by
transformers' model, as its request alone. Two minutes over both kinds of kernels, or so many seconds as
PAGEWIRE_TEST_TRAFFIC_S says; PAGEWIRE_TEST_SEED draws other traffic. On a machine with a GPU, over its kernels too.
"""

import os
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest
import torch
from support.checkpoints import Checkpoint, build_hf_model, save_checkpoint
from support.decoders import KINDS
from support.service import Service, serve
from support.tiny_tokenizer import save_letters_tokenizer
from support.torch_threads import torch_threads
from support.traffic import Answer, Asked, Judge, draw_requests, for_seconds, run_traffic

from pagewire.wire.grammar import GrammarTokenizer
from pagewire.worker.native.library import LIBRARY_FILE

SECONDS = float(os.environ.get("PAGEWIRE_TEST_TRAFFIC_S", "120"))
SEED = int(os.environ.get("PAGEWIRE_TEST_SEED", "0"))
REPEATS = int(os.environ.get("PAGEWIRE_TEST_REPEATS", "100"))
ROUND_S = 12.0
"""Of traffic, before the service's limits are drawn anew."""
MAX_MODEL_LEN = 72
COMPILE_LIMIT_S = 240.0
"""Until a service is ready whose kernels are compiled first."""
MAX_TIES = 1e-3
"""The share of tokens that may be ties."""
KV_BYTES_PER_TOKEN = 2 * 3 * 2 * 16 * 4
"""Keys and values of the checkpoint: layers, heads, values of a head, bytes."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 300)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    saved = save_checkpoint(build_hf_model("qwen3-tied"), tmp_path_factory.mktemp("traffic"))
    save_letters_tokenizer(saved.directory, saved.config.vocab_size)
    return saved


@pytest.fixture
def judge(checkpoint: Checkpoint) -> Iterator[Judge]:
    with torch_threads(1):
        vocab_size = checkpoint.config.vocab_size
        file = str(checkpoint.directory / "tokenizer.json")
        judge = Judge(checkpoint.hf_model, GrammarTokenizer.read(file, [vocab_size - 1], vocab_size))
        yield judge
    assert judge.num_ties <= 5 + MAX_TIES * judge.num_tokens, f"{judge.num_ties} of {judge.num_tokens} tokens are ties"


@pytest.fixture(params=[*KINDS, "cuda"])
def kind(request: pytest.FixtureRequest) -> str:
    """Kernels of a CPU, or those of a GPU."""
    kind: str = request.param
    if kind == "native" and not LIBRARY_FILE.exists():
        pytest.skip("built without the native library")
    if kind == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return kind


def drawn_limits(draw: random.Random, kind: str) -> dict[str, object]:
    """A service's limits, narrow enough that each of them is met."""
    block_size = draw.choice((1, 4, 16, 32))
    max_num_seqs = draw.choice((1, 2, 4, 7))
    num_tokens = int(MAX_MODEL_LEN * draw.choice((1.4, 2.0, max_num_seqs + 1)))
    prefill = draw.choice((1, 2, 5, 16, 64))
    return {
        "max_num_seqs": max_num_seqs,
        "max_n": max_num_seqs,
        "block_size": block_size,
        "kv_cache_bytes": -(-num_tokens // block_size) * block_size * KV_BYTES_PER_TOKEN,
        "max_prefill_tokens_per_step": prefill,
        "max_num_batched_tokens": max_num_seqs + prefill + draw.choice((0, 3, 40)),
        # Beside other load, torch's threads wait for each other longer than they compute.
        "num_threads": draw.choice((1, 2)) if kind == "native" else 1,
        "pipeline_depth": draw.choice((1, 2, 2)),
    }


def serve_checkpoint(checkpoint: Checkpoint, kind: str, **limits: object) -> AbstractContextManager[Service]:
    return serve(
        model=str(checkpoint.directory),
        dtype="float32",
        max_model_len=MAX_MODEL_LEN,
        ready_limit_s=COMPILE_LIMIT_S,
        **({"device": "cuda"} if kind == "cuda" else {"device": "cpu", "cpu_kernels": kind}),
        **limits,
    )


def all_is_well(service: Service, pids: dict[str, int], answers: list[Answer], judge: Judge) -> None:
    """Nothing is held any more, no process was started again, and each answer is its request's."""
    service.wait_for_load(lambda load: load.used_blocks == load.running_sequences == load.waiting_sequences == 0)
    assert {role: process.pid for role, process in service.children().items()} == pids
    complaints = [complaint for answer in answers for complaint in judge.complaints(answer)]
    assert not complaints, "\n".join(complaints[:5])


@pytest.mark.parametrize("quarter", range(4))
def test_random_traffic_gets_what_each_request_alone_would(
    checkpoint: Checkpoint, judge: Judge, kind: str, quarter: int
) -> None:
    goes_on = for_seconds(SECONDS / 4 / len(KINDS))
    draw = random.Random(4 * SEED + quarter)
    num_answers = num_cached = 0
    while goes_on():
        limits = drawn_limits(draw, kind)
        requests = draw_requests(draw, checkpoint.config.vocab_size, int(str(limits["max_n"])), MAX_MODEL_LEN)
        with serve_checkpoint(checkpoint, kind, **limits) as service:
            pids = {role: process.pid for role, process in service.children().items()}
            round_goes_on = for_seconds(min(ROUND_S, SECONDS / 8 / len(KINDS)))
            num_under_way = draw.choice((2, 6, 20))
            answers = run_traffic(service.address, requests, draw, num_under_way, round_goes_on)
            all_is_well(service, pids, answers, judge)
        num_answers += len(answers)
        num_cached += sum(answer.cached_tokens > 0 for answer in answers)
    assert judge.num_tokens > 0
    print(
        f"{kind}: {num_answers} answers, {num_cached} from the cache, {judge.num_tokens} tokens, {judge.num_ties} ties"
    )


def test_a_chunk_that_has_as_many_rows_as_the_decoding_step_before(
    checkpoint: Checkpoint, judge: Judge, kind: str
) -> None:
    """Four outputs end in one step, and the next step is nothing but a prompt of four tokens."""
    four = Asked(prompt=(1, 2, 3, 4), n=4, seed=7, temperature=1.0, max_tokens=20)
    one = Asked(prompt=(9, 8, 7, 6), max_tokens=4)
    left = REPEATS

    def goes_on() -> bool:
        nonlocal left
        left -= 1
        return left >= 0

    class Always(random.Random):
        """Both requests, one right behind the other."""

        def choice(self, seq):  # type: ignore[no-untyped-def, override]
            return 2

        def random(self) -> float:
            return 1.0

    with serve_checkpoint(checkpoint, kind, max_num_seqs=4, max_n=4, num_threads=1) as service:
        pids = {role: process.pid for role, process in service.children().items()}
        pair = iter([four, one] * REPEATS)
        answers = run_traffic(service.address, pair, Always(), 2, goes_on)
        assert len(answers) == 2 * REPEATS
        firsts = {asked: next(answer for answer in answers if answer.asked == asked) for asked in (four, one)}
        assert all(answer.outputs == firsts[answer.asked].outputs for answer in answers)
        all_is_well(service, pids, list(firsts.values()), judge)
