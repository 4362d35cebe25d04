"""Two and four ranks over Gloo against one: the same tokens, and each rank holds its part alone."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from support.checkpoints import TINY, decoder_config, model_spec, save_checkpoint
from support.gguf_files import write_gguf
from support.rank_process import RankAnswer, RankJob, run
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from pagewire.wire.launch import CpuKernelKind
from pagewire.wire.model import DecoderConfig, ModelSpec
from pagewire.worker.cpu.kernels import choose_kernels
from pagewire.worker.native.library import NativeUnavailable

RANK_PROCESS = Path(__file__).parents[2] / "support" / "rank_process.py"
LIMIT_S = 400.0
SHAPE = {**TINY, "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 64, "head_dim": 16}
PROMPT = [5, 9, 200, 31, 7, 77, 140, 3]
NUM_TOKENS = 64

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen3-tied": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=True)),
    "qwen3-untied": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=False)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True)),
    # A vocabulary that neither 2 nor 4 divides.
    "qwen3-odd": lambda: Qwen3ForCausalLM(Qwen3Config(**(SHAPE | {"vocab_size": 251}), tie_word_embeddings=True)),
}


def with_all_parts_random(model: PreTrainedModel) -> PreTrainedModel:
    """Biases and norms start at 0 and 1, where a mistake in them would not show."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(0.0, 0.5)
            elif name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
    return model.eval()


def run_ranks(jobs: list[RankJob], world_size: int, directory: Path) -> list[list[RankAnswer]]:
    """The answers of each rank."""
    file = directory / f"jobs-{world_size}.json"
    file.write_bytes(msgspec.json.encode(jobs))
    processes = [
        subprocess.Popen(
            [sys.executable, str(RANK_PROCESS), str(file), str(rank), str(world_size)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(world_size)
    ]
    try:
        outputs = [process.communicate(timeout=LIMIT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * world_size, outputs
    return [msgspec.json.decode(out, type=list[RankAnswer]) for out, _ in outputs]


def best_kind(config: DecoderConfig) -> CpuKernelKind:
    try:
        choose_kernels(config, torch.float32, 1, "native")
    except NativeUnavailable:
        return "torch"
    return "native"


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> list[ModelSpec]:
    """A checkpoint per kind of model, and a GGUF file."""
    found = []
    for name, make in MODELS.items():
        torch.manual_seed(1)
        model = with_all_parts_random(make())
        found.append(save_checkpoint(model, tmp_path_factory.mktemp(name)).spec)
    file = tmp_path_factory.mktemp("gguf") / "model.gguf"
    torch.manual_seed(1)
    model = with_all_parts_random(MODELS["llama"]())
    write_gguf(model, file, Kind.Q8_0)
    # Whose files hold a head, though the flag says tied.
    untied = found[list(MODELS).index("qwen3-untied")]
    mistaken = msgspec.structs.replace(untied.decoder, tie_word_embeddings=True)
    found.append(msgspec.structs.replace(untied, decoder=mistaken))
    return [*found, model_spec(decoder_config(model.config), "gguf", (str(file),))]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_draw_the_tokens_that_one_draws(specs: list[ModelSpec], world_size: int, tmp_path: Path) -> None:
    if world_size == 4:  # whose processes take turns on few cores
        specs = specs[:3]
    kinds = [best_kind(spec.decoder) for spec in specs]
    jobs = [
        RankJob(spec, f"file://{tmp_path}/{index}.store", kind, PROMPT, NUM_TOKENS)
        for index, (spec, kind) in enumerate(zip([*specs, specs[0]], [*kinds, "torch"], strict=True))
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = [run(job, 0, 1) for job in jobs]
    torch.set_num_threads(threads)
    assert all(len(set(answer.tokens)) > 10 for answer in whole), "a model that says one thing shows nothing"
    for answers in run_ranks(jobs, world_size, tmp_path):
        assert [answer.tokens for answer in answers] == [answer.tokens for answer in whole]
        for part, all_parts in zip(answers, whole, strict=True):
            assert part.weights_bytes < all_parts.weights_bytes * (1 / world_size + 0.05)


@pytest.mark.alone
def test_a_rank_s_memory_holds_its_part_alone(tmp_path: Path) -> None:
    config = Qwen3Config(
        **SHAPE | {"hidden_size": 512, "intermediate_size": 2048, "vocab_size": 8192, "num_hidden_layers": 8},
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    spec = save_checkpoint(Qwen3ForCausalLM(config), tmp_path / "model", max_shard_size="40MB").spec
    size = sum(Path(file).stat().st_size for file in spec.weights_files)
    assert size > 130e6
    peaks = {}
    for world_size in (1, 4):
        jobs = [RankJob(spec, f"file://{tmp_path}/{world_size}.store", "torch", PROMPT, 0)]
        (answers,) = zip(*run_ranks(jobs, world_size, tmp_path), strict=True)
        peaks[world_size] = [answer.peak_bytes for answer in answers]
    assert peaks[1][0] > size
    # The largest tensor, packed and not, and what allocators keep, come on top of a rank's part.
    assert max(peaks[4]) < size / 4 + 40e6, peaks
