"""A directory in Hugging Face layout → `ModelSpec`. Only safetensors weights are served; pickled ones are refused."""

import logging
from pathlib import Path

import msgspec

from pagewire.scheduler_svc.models.digest import weights_digest
from pagewire.scheduler_svc.models.hf_config import HfGeneration, read_config, read_generation_config
from pagewire.scheduler_svc.models.hf_tokenizer import read_tokenizer
from pagewire.scheduler_svc.startup_errors import ModelError
from pagewire.wire.model import ModelSpec, SamplingDefaults

_log = logging.getLogger(__name__)

_UNAPPLIED_DEFAULTS = {"repetition_penalty": 1.0, "min_p": 0.0, "typical_p": 1.0, "presence_penalty": 0.0}
"""Keys of generation_config.json that change sampling and are not applied, with their neutral values."""


class _Index(msgspec.Struct):
    """model.safetensors.index.json: tensor name → file name."""

    weight_map: dict[str, str]


def read_directory(folder: Path, name: str, weights_needed: bool) -> ModelSpec:
    """Describe the model in a directory. Where weights are not needed (the sim device), they may be absent.

    Raises ModelError naming the file that is missing or cannot be served.
    """
    try:
        config = read_config(_read(folder, "config.json"))
        generation = _generation(folder, config.decoder.vocab_size)
        tokenizer = read_tokenizer(folder)
        files = weights_files(folder) if weights_needed else ()
        digest = weights_digest(files)
    except OSError as error:
        raise ModelError(f"{error.filename or folder} cannot be read: {error.strerror}") from error
    eos = generation.eos_token_ids or config.eos_token_ids
    if not eos and tokenizer.eos_token_id is not None:
        eos = (tokenizer.eos_token_id,)
    return ModelSpec(
        name=name,
        decoder=config.decoder,
        weights_format="safetensors",
        weights_files=tuple(map(str, files)),
        weights_digest=digest,
        eos_token_ids=eos,
        tokenizer_file=tokenizer.file,
        tokenizer_digest=tokenizer.digest,
        add_bos=tokenizer.add_bos,
        chat_template=tokenizer.chat_template,
        special_tokens=tokenizer.special_tokens,
        sampling=generation.sampling,
    )


def weights_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files: the shards that the index names, or model.safetensors. Raises ModelError."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(msgspec.json.decode(index.read_bytes(), type=_Index).weight_map.values()))
        except msgspec.DecodeError as error:
            raise ModelError(f"{index}: {error}") from error
        for name in names:
            if "/" in name or name in ("", ".", "..") or not name.endswith(".safetensors"):
                raise ModelError(f"{index}: {name!r} is not the name of a safetensors file beside it")
            if not (folder / name).is_file():
                raise ModelError(f"{index} names {name}, which is missing")
        if not names:
            raise ModelError(f"{index} names no file")
        return tuple(folder / name for name in names)
    single = folder / "model.safetensors"
    if single.is_file():
        return (single,)
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    hint = f"; {', '.join(pickled)} can run code when read and is not served" if pickled else ""
    raise ModelError(f"{folder} has neither model.safetensors nor model.safetensors.index.json{hint}")


def _generation(folder: Path, vocab_size: int) -> HfGeneration:
    file = folder / "generation_config.json"
    if not file.is_file():
        return HfGeneration((), SamplingDefaults())
    content = file.read_bytes()
    generation = read_generation_config(content, vocab_size)
    for key, value in msgspec.json.decode(content, type=dict[str, object]).items():
        if key in _UNAPPLIED_DEFAULTS and value not in (None, _UNAPPLIED_DEFAULTS[key]):
            _log.warning("%s sets %s = %r, which is not applied", file, key, value)
    return generation


def _read(folder: Path, name: str) -> bytes:
    file = folder / name
    if not file.is_file():
        raise ModelError(f"{folder} has no {name}")
    return file.read_bytes()
