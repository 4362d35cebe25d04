"""Directories in Hugging Face layout, from this machine and from the hub's cache."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.model_files import HfDirectory, write_tokenizer
from support.models import QUIET

from pagewire.scheduler_svc.models.files import weights_digest
from pagewire.scheduler_svc.models.hf_directory import read_directory
from pagewire.scheduler_svc.models.resolve import resolve_model
from pagewire.scheduler_svc.startup_errors import ModelError
from pagewire.wire.sampling import SamplingParams


def test_a_directory(hf_directory: HfDirectory, tmp_path: Path) -> None:
    hf_directory.write("generation_config.json", {"eos_token_id": [258, 257], "temperature": 0.6, "top_k": 20})
    hf_directory.tokenizer_config(
        chat_template="old", bos_token=None, eos_token={"content": "<|im_end|>", "lstrip": False, "normalized": False}
    )
    hf_directory.write("chat_template.jinja", "{{ messages }}")
    spec = resolve_model(
        str(hf_directory.path), served_name=None, weights_needed=True, cache_dir=tmp_path, environ={}, progress=QUIET
    )
    assert spec.name == "tiny-qwen3"
    assert (spec.decoder.head_dim, spec.decoder.num_kv_heads, spec.decoder.qk_norm) == (32, 2, True)
    assert spec.weights_files == (str(hf_directory.path / "model.safetensors"),)
    assert spec.eos_token_ids == (258, 257)
    assert spec.sampling == SamplingParams(temperature=0.6, top_k=20)
    assert spec.chat_template == "{{ messages }}"
    assert spec.special_tokens == {"eos_token": "<|im_end|>"}
    definition = (hf_directory.path / "tokenizer.json").read_bytes()
    assert spec.tokenizer_digest == "sha256:" + hashlib.sha256(definition).hexdigest()


def test_a_served_name(hf_directory: HfDirectory, tmp_path: Path) -> None:
    spec = resolve_model(
        str(hf_directory.path), served_name="x", weights_needed=True, cache_dir=tmp_path, environ={}, progress=QUIET
    )
    assert spec.name == "x"


def test_shards_are_those_that_the_index_names(hf_directory: HfDirectory) -> None:
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "consolidated.safetensors"):
        shutil.copy(hf_directory.path / "model.safetensors", hf_directory.path / name)
    (hf_directory.path / "model.safetensors").unlink()
    index = {"b": "model-00002-of-00002.safetensors", "a": "model-00001-of-00002.safetensors"}
    hf_directory.write("model.safetensors.index.json", {"metadata": {}, "weight_map": index})
    spec = read_directory(hf_directory.path, "m", weights_needed=True, cache_dir=hf_directory.path.parent)
    assert [Path(file).name for file in spec.weights_files] == sorted(index.values())
    (hf_directory.path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"names model-00002-of-00002\.safetensors, which is missing"):
        read_directory(hf_directory.path, "m", weights_needed=True, cache_dir=hf_directory.path.parent)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "x.bin", "", "a\0.safetensors"])
def test_an_index_names_nothing_outside(hf_directory: HfDirectory, name: str) -> None:
    (hf_directory.path / "model.safetensors").unlink()
    hf_directory.write("model.safetensors.index.json", {"weight_map": {"a": name}})
    with pytest.raises(ModelError, match="is not the name of a safetensors file beside it"):
        read_directory(hf_directory.path, "m", weights_needed=True, cache_dir=hf_directory.path.parent)


def test_one_file_counts_before_an_index_as_in_transformers(
    hf_directory: HfDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    hf_directory.write("model.safetensors.index.json", {"weight_map": {"a": "gone.safetensors"}})
    spec = read_directory(hf_directory.path, "m", weights_needed=True, cache_dir=hf_directory.path.parent)
    assert [Path(file).name for file in spec.weights_files] == ["model.safetensors"]
    assert "model.safetensors and model.safetensors.index.json; the former counts" in caplog.text


def test_pickled_weights_are_refused(hf_directory: HfDirectory) -> None:
    (hf_directory.path / "model.safetensors").rename(hf_directory.path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin can run code when read and is not served"):
        read_directory(hf_directory.path, "m", weights_needed=True, cache_dir=hf_directory.path.parent)
    assert (
        read_directory(hf_directory.path, "m", weights_needed=False, cache_dir=hf_directory.path.parent).weights_files
        == ()
    )


def test_what_is_missing_is_named(hf_directory: HfDirectory) -> None:
    (hf_directory.path / "tokenizer.json").unlink()
    assert (
        read_directory(hf_directory.path, "m", weights_needed=True, cache_dir=hf_directory.path.parent).tokenizer_file
        is None
    )
    hf_directory.write("vocab.json", "{}")
    with pytest.raises(ModelError, match=r"has vocab\.json but no tokenizer\.json"):
        read_directory(hf_directory.path, "m", weights_needed=True, cache_dir=hf_directory.path.parent)
    (hf_directory.path / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        read_directory(hf_directory.path, "m", weights_needed=True, cache_dir=hf_directory.path.parent)


def test_special_tokens_and_named_templates(hf_directory: HfDirectory) -> None:
    hf_directory.write("special_tokens_map.json", {"bos_token": {"content": "<s>"}})
    hf_directory.tokenizer_config(
        eos_token="<|end|>",
        extra_special_tokens={"image_token": "<|image|>"},
        chat_template=[{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}],
    )
    spec = read_directory(hf_directory.path, "m", weights_needed=True, cache_dir=hf_directory.path.parent)
    assert spec.special_tokens == {"bos_token": "<s>", "eos_token": "<|end|>", "image_token": "<|image|>"}
    assert (spec.chat_template, spec.tool_use_template) == ("b", "a")


def test_end_of_sequence_falls_back_to_the_tokenizers(hf_directory: HfDirectory) -> None:
    hf_directory.config(eos_token_id=None)
    hf_directory.tokenizer_config(eos_token="<|end|>")
    assert read_directory(
        hf_directory.path, "m", weights_needed=True, cache_dir=hf_directory.path.parent
    ).eos_token_ids == (257,)


def test_unapplied_defaults_are_said(hf_directory: HfDirectory, caplog: pytest.LogCaptureFixture) -> None:
    hf_directory.write("generation_config.json", {"typical_p": 0.5, "eta_cutoff": 0.0})
    read_directory(hf_directory.path, "m", weights_needed=True, cache_dir=hf_directory.path.parent)
    assert "typical_p = 0.5, which is not applied" in caplog.text
    assert "eta_cutoff" not in caplog.text


def test_an_older_models_sampling_stands_in_its_configuration(
    hf_directory: HfDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    """As transformers reads it, where there is no generation_config.json."""
    hf_directory.config(do_sample=True, temperature=0.7, top_p=0.9)
    spec = read_directory(hf_directory.path, "m", weights_needed=True, cache_dir=hf_directory.path.parent)
    assert spec.sampling == SamplingParams(temperature=0.7, top_p=0.9)
    hf_directory.write("generation_config.json", {"temperature": 0.5, "do_sample": True})
    assert read_directory(
        hf_directory.path, "m", weights_needed=True, cache_dir=hf_directory.path.parent
    ).sampling == SamplingParams(temperature=0.5)
    assert "config.json sets temperature = 0.7 too; generation_config.json counts" in caplog.text
    assert "do_sample" not in caplog.text


def test_an_adapter_is_not_left_out_in_silence(hf_directory: HfDirectory, caplog: pytest.LogCaptureFixture) -> None:
    hf_directory.write("adapter_config.json", {"peft_type": "LORA"})
    read_directory(hf_directory.path, "m", weights_needed=True, cache_dir=hf_directory.path.parent)
    assert "has an adapter (adapter_config.json), which is not applied" in caplog.text


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors.index.json"])
def test_files_that_are_no_text_or_too_large_are_named(hf_directory: HfDirectory, name: str) -> None:
    (hf_directory.path / "model.safetensors").unlink()
    (hf_directory.path / "a.safetensors").touch()
    hf_directory.write("generation_config.json", {"transformers_version": "5"})
    hf_directory.write("model.safetensors.index.json", {"weight_map": {"x": "a.safetensors"}})
    file = hf_directory.path / name
    whole = file.read_bytes()
    assert read_directory(hf_directory.path, "m", weights_needed=True, cache_dir=hf_directory.path.parent).weights_files
    for content, words in (
        (whole.replace(b': "', b': "\xff', 1), "not UTF-8"),
        (whole + b" " * (17 << 20), "larger than"),
        (b'{"a": ' + b"[" * 10**6, "nested too deep|malformed"),
    ):
        file.write_bytes(content)
        with pytest.raises(ModelError, match=rf"{name}.*({words})"):
            read_directory(hf_directory.path, "m", weights_needed=True, cache_dir=hf_directory.path.parent)


def test_weights_digest(tmp_path: Path) -> None:
    """Every sampled byte counts, and so do names and sizes; the order in which files are given does not."""
    large = bytes(range(256)) * 4096 * 8  # 8 MiB
    files = [tmp_path / "a", tmp_path / "b"]
    files[0].write_bytes(large)
    files[1].write_bytes(b"small")
    digest = weights_digest(files)
    assert digest == weights_digest(files[::-1])
    assert digest.startswith("sha256-sampled:")
    middle = 1024 * 1024 + (len(large) - 2 * 1024 * 1024 - 65536) * 30 // 61  # where sample 30 starts
    for offset in (0, middle, len(large) - 1):
        changed = bytearray(large)
        changed[offset] ^= 1
        files[0].write_bytes(changed)
        assert weights_digest(files) != digest, offset
    files[0].write_bytes(large)
    assert weights_digest([files[0], files[1].rename(tmp_path / "c")]) != digest


# The hub: a cache laid out by hand, read in a process of its own, because HF_HUB_OFFLINE is looked at on import.

RESOLVE = """
import os, sys
from pathlib import Path
from pagewire.scheduler_svc.models.resolve import resolve_model
from pagewire.scheduler_svc.progress import QuietProgress
from pagewire.scheduler_svc.startup_errors import ModelError
try:
    spec = resolve_model(sys.argv[1], served_name=None, weights_needed=True, cache_dir=Path("/nonexistent"),
                         environ=os.environ, progress=QuietProgress())
    print(spec.name, spec.weights_files[0], spec.tokenizer_file)
except ModelError as error:
    sys.exit(str(error))
"""


def run_resolve(model: str, hub: Path) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", RESOLVE, model], capture_output=True, text=True, timeout=60, env=environ
    )


def test_a_hub_model_from_the_cache(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = hub / "models--some--tiny"
    HfDirectory(repo / "snapshots" / commit)
    write_tokenizer(repo / "snapshots" / commit / "tokenizer.json", "<s>")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    (repo / "refs" / "v1").write_text(commit)
    for model in ("some/tiny", "some/tiny@v1", f"some/tiny@{commit}"):
        done = run_resolve(model, hub)
        assert done.returncode == 0, done.stderr
        name, weights, tokenizer = done.stdout.split()
        assert name == "some/tiny"
        assert Path(weights).parent == Path(tokenizer).parent == repo / "snapshots" / commit


def test_a_hub_model_that_is_not_there_says_what_was_tried(tmp_path: Path) -> None:
    done = run_resolve("some/absent", tmp_path / "hub")
    assert done.returncode == 1
    for words in ("model 'some/absent'", "HF_HUB_OFFLINE is set", str(tmp_path / "hub"), "--model smollm2-135m"):
        assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_template_that_is_no_text_is_named(hf_directory: HfDirectory, tmp_path: Path) -> None:
    (hf_directory.path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ModelError, match=r"chat_template\.jinja is not UTF-8"):
        resolve_model(
            str(hf_directory.path),
            served_name=None,
            weights_needed=True,
            cache_dir=tmp_path,
            environ={},
            progress=QUIET,
        )
