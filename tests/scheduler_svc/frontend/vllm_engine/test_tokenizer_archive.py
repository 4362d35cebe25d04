"""The tokenizer archive: a model's own files, byte by byte, or what its one file says."""

import asyncio
import hashlib
import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from pagewire.scheduler_svc.frontend.vllm_engine.tokenizer_files import TokenizerArchive, chunks
from pagewire.wire.model import ModelSpec


def content(spec: ModelSpec, folder: Path) -> tuple[dict[str, bytes], str]:
    with ThreadPoolExecutor(1) as threads:

        async def both() -> list[tuple[bytes, str]]:
            archive = TokenizerArchive(spec, str(folder / "tokenizer.json"), threads)
            return list(await asyncio.gather(archive.content(), archive.content()))

        first, second = asyncio.run(both())
    assert first is second  # made once
    packed, digest = first
    assert hashlib.sha256(packed).hexdigest() == digest
    assert b"".join(chunks(packed)) == packed
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}, digest


def test_a_directorys_own_files(spec: ModelSpec, tmp_path: Path) -> None:
    files = {
        "tokenizer.json": b'{"version": "1.0"}' * 9000,
        "tokenizer_config.json": b'{"chat_template": "x"}',
        "chat_template.jinja": b"{{ messages }}",
        "config.json": b"{}",
    }
    for name, written in files.items():
        (tmp_path / name).write_bytes(written)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "private.txt").write_bytes(b"not ours to send")
    found, digest = content(spec, tmp_path)
    assert found == files
    assert content(spec, tmp_path)[1] == digest


def test_a_model_that_is_one_file(spec: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    spec = msgspec.structs.replace(
        spec, chat_template="{{ a }}", special_tokens={"eos_token": "</s>", "bos_token": "<s>"}
    )
    found, _ = content(spec, tmp_path)
    assert set(found) == {"tokenizer.json", "tokenizer_config.json"}
    config = json.loads(found["tokenizer_config.json"])
    assert (config["chat_template"], config["eos_token"], config["bos_token"]) == ("{{ a }}", "</s>", "<s>")
    two = msgspec.structs.replace(spec, tool_use_template="{{ b }}")
    config = json.loads(content(two, tmp_path)[0]["tokenizer_config.json"])
    assert [each["name"] for each in config["chat_template"]] == ["default", "tool_use"]


def test_files_that_cannot_be_read_are_tried_again(spec: ModelSpec, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as threads:

        async def twice() -> None:
            archive = TokenizerArchive(spec, str(tmp_path / "tokenizer.json"), threads)
            with pytest.raises(OSError, match="No such file"):
                await archive.content()
            (tmp_path / "tokenizer.json").write_bytes(b"{}")
            assert (await archive.content())[0]

        asyncio.run(twice())
