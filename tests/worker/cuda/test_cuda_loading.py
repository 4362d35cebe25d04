"""What a launch on device cuda says where there is no such device, and where weights end up."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.device_runner import plain_decoder, run, tiny_config, tiny_spec
from support.host_device import CpuPlatform, row_by_row
from support.plan_stream import LoadedStream, limits_of
from support.worker_plans import PlanMaker, admit
from support.worker_process import TIMEOUT_S, sim_launch

from pagewire.wire.columns import unpack
from pagewire.wire.launch import RankGroup
from pagewire.wire.plan import StepPlan
from pagewire.wire.sampling import SamplingParams
from pagewire.worker.attention.kv_cache import KVCache
from pagewire.worker.attention.paged_torch import PagedTorchAttention
from pagewire.worker.attention.triton import TritonAttention
from pagewire.worker.cpu.runner import CpuRunner
from pagewire.worker.cuda.loading import load_onto
from pagewire.worker.devices import load_device
from pagewire.worker.kernels.contract import Kernels
from pagewire.worker.launch import LaunchError
from pagewire.worker.linears.torch import TorchLinear, TorchLinears
from pagewire.worker.slots.columns import SlotLimits
from pagewire.worker.weights.build import load_decoder


@pytest.mark.parametrize(("built_with", "reason"), [(None, "is built without CUDA"), ("12.9", "finds no CUDA device")])
def test_a_machine_without_a_device(monkeypatch: pytest.MonkeyPatch, built_with: str | None, reason: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_with)
    with pytest.raises(LaunchError, match=rf"^device cuda: torch \S+ {reason}$"):
        load_device(
            sim_launch("ipc:///nowhere", device="cuda"),
            progress=lambda stage, fraction: None,
            on_rank_lost=lambda reason: None,
            wake=lambda: None,
        )


@pytest.mark.parametrize("tied", [False, True])
def test_every_weight_goes_to_the_linears_device(tied: bool) -> None:
    """The `meta` device stands for one that is not the CPU."""
    meta = torch.device("meta")
    linears = TorchLinears(TorchLinear, meta)
    spec = tiny_spec(tiny_config(vocab_size=50, tied=tied))
    decoder = load_decoder(spec, "float32", PagedTorchAttention(), lambda stage, done: None, linears=linears)
    found = []
    pending: list[object] = [decoder.weights]
    while pending:
        part = pending.pop()
        if isinstance(part, torch.Tensor):
            found.append(part)
        elif isinstance(part, list):
            pending += part
        elif hasattr(part, "__dict__"):
            pending += vars(part).values()
        elif hasattr(part, "__slots__"):
            pending += [getattr(part, name) for name in part.__slots__]
    assert {tensor.device for tensor in found} == {meta}
    # Per layer four linears and three norms of two tensors each; the last norm; embedding and head.
    assert len(found) == 2 * (4 + 3 * 2) + 2 + 2
    matrices = {id(tensor) for tensor in found if tensor.shape[:1] == (50,)}
    assert len(matrices) == (1 if tied else 2)


def test_a_launch_becomes_a_runner_that_wakes_its_loop() -> None:
    model = tiny_spec(tiny_config(vocab_size=100))
    launch = sim_launch("ipc:///nowhere", device="cuda", dtype="float32", model=model, max_num_seqs=3, block_size=None)
    woken, stages = threading.Event(), []
    loaded = load_onto(
        launch,
        CpuPlatform(),
        progress=lambda stage, done: stages.append((stage, done)),
        on_rank_lost=lambda reason: None,
        wake=woken.set,
    )
    hello = loaded.hello
    assert hello.block_size == TritonAttention.default_block_size
    assert (hello.attention_backend, hello.linear_backend) == ("triton", "skinny-reference")
    assert [stage for stage, done in stages if done == 1.0] == ["weights", "graphs"]
    limits, runner = limits_of(launch, hello), loaded.runner
    assert limits.num_blocks == 3 * -(-launch.max_model_len // 64)

    plain = CpuRunner(plain_decoder(model.decoder), KVCache(model.decoder, 9, 64, torch.float32), limits)
    maker = PlanMaker()
    for each in (plain, runner):
        each.begin(1)
    for plan in [maker.make(admits=[admit(2, [3, 4, 5], [1])], chunks=[(2, 3)]), maker.make(), maker.make()]:
        woken.clear()
        assert unpack(run(runner, plan).tokens).tolist() == plain.run(plan).tokens.tolist()
        assert woken.wait(TIMEOUT_S)


def test_two_ranks_sample_what_one_does(tmp_path: Path) -> None:
    """Each rank on a thread of its own, with Gloo between them; captured steps hold the sums and gathers."""
    model = tiny_spec(tiny_config(vocab_size=101, tied=True))
    drawn = SamplingParams(temperature=0.9, top_k=50, top_p=0.95, seed=7)

    def plans() -> list[StepPlan]:
        maker = PlanMaker()
        first = [admit(0, [3, 4, 5], [1]), admit(2, [9] * 4, [2], sampling=drawn)]
        return [
            maker.make(admits=first, chunks=[(0, 3), (2, 2)]),
            maker.make(chunks=[(2, 2)]),
            *(maker.make() for _ in range(6)),
            maker.make(release=[0]),
        ]

    def rank(number: int) -> list[list[int]]:
        launch = sim_launch(
            "ipc:///nowhere",
            device="cuda",
            dtype="float32",
            model=model,
            max_num_seqs=3,
            rank=number,
            world_size=2,
            group=RankGroup(store=f"file://{tmp_path}/ranks", num_local_ranks=2, join_timeout_s=TIMEOUT_S),
        )
        loaded = load_onto(
            launch,
            CpuPlatform(),
            progress=lambda stage, done: None,
            on_rank_lost=lambda reason: None,
            wake=lambda: None,
        )
        runner = loaded.runner
        runner.begin(1)
        return [unpack(run(runner, plan).tokens).tolist() for plan in plans()]

    with ThreadPoolExecutor(2) as pool:
        tokens = list(pool.map(rank, range(2)))
    limits = SlotLimits(
        max_num_seqs=3, max_model_len=256, max_num_batched_tokens=256, block_size=16, num_blocks=9, vocab_size=101
    )
    plain = CpuRunner(plain_decoder(model.decoder), KVCache(model.decoder, 9, 16, torch.float32), limits)
    plain.begin(1)
    expected = [plain.run(plan).tokens.tolist() for plan in plans()]
    assert tokens == [expected, expected]


@pytest.mark.parametrize("enforce_eager", [False, True])
def test_random_plans_after_loading(enforce_eager: bool) -> None:
    """As tests/device does on one."""
    launch = sim_launch(
        "ipc:///nowhere",
        device="cuda",
        dtype="float32",
        model=tiny_spec(tiny_config(vocab_size=100)),
        max_num_seqs=20,
        max_model_len=64,
        max_num_batched_tokens=96,
        enforce_eager=enforce_eager,
    )
    stream = LoadedStream(launch, CpuPlatform())
    for seed in range(2):
        assert stream.check(seed, 30)[0].idle_us == 0


@pytest.mark.parametrize("enforce_eager", [False, True])
def test_random_special_rows_after_loading(enforce_eager: bool) -> None:
    """Two steps in flight, log-probabilities, controls and scored prompts among them."""
    launch = sim_launch(
        "ipc:///nowhere",
        device="cuda",
        dtype="float32",
        model=tiny_spec(tiny_config(vocab_size=100)),
        max_num_seqs=20,
        max_model_len=64,
        max_num_batched_tokens=96,
        enforce_eager=enforce_eager,
    )
    results = LoadedStream(launch, CpuPlatform()).check(5, 40, special=True)
    assert any(result.logprobs for result in results)
    assert any(result.prompt_logprobs for result in results)


def test_exact_continuation_takes_exact_kernels() -> None:
    launch = sim_launch(
        "ipc:///nowhere",
        device="cuda",
        dtype="float32",
        model=tiny_spec(tiny_config(vocab_size=100)),
        max_num_seqs=20,
        max_model_len=64,
        max_num_batched_tokens=96,
        exact_continuation=True,
    )
    stream = LoadedStream(launch, CpuPlatform())
    hello = stream.loaded.hello
    assert (hello.attention_backend, hello.linear_backend) == ("triton", "row-by-row")
    assert hello.recomputes_exactly
    stream.check(0, 30)


class _NotQuiteExact(CpuPlatform):
    """Few rows are summed in another order than many."""

    def kernels(self, *, exact: bool = False) -> Sequence[Kernels]:
        def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
            row_by_row(x, weight, bias, out)
            if len(x) < 3:
                row_by_row(x.flip(1), weight.flip(1), bias, out)

        return [replace(kernels, linear=linear) for kernels in super().kernels(exact=exact)]


@pytest.mark.parametrize(
    ("changes", "platform", "message"),
    [
        (
            {"attention_backend": "flash-attention-3"},
            CpuPlatform(),
            "exact_continuation is set and attention_backend is flash-attention-3; it is triton",
        ),
        ({}, _NotQuiteExact(), r"exact_continuation is set, and on this device \d+ values of 1 rows differ"),
    ],
)
def test_a_device_that_cannot_continue_exactly_does_not_serve(
    changes: dict[str, object], platform: CpuPlatform, message: str
) -> None:
    launch = sim_launch("ipc:///nowhere", device="cuda", dtype="float32", exact_continuation=True, **changes)
    with pytest.raises(ValueError, match=message):
        load_onto(launch, platform, lambda stage, done: None, lambda reason: None, lambda: None)
