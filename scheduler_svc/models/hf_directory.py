"""A directory in Hugging Face layout → `ModelSpec`. Only safetensors weights are served; pickled ones are refused."""

import logging
from pathlib import Path

import msgspec

from pagewire.scheduler_svc.models.files import decode_json, decode_object, read_bounded, weights_digest
from pagewire.scheduler_svc.models.hf_config import read_config
from pagewire.scheduler_svc.models.hf_generation import SAMPLING_KEYS, HfGeneration, read_generation_config
from pagewire.scheduler_svc.models.hf_tokenizer import read_tokenizer
from pagewire.scheduler_svc.startup_errors import ModelError, shown
from pagewire.wire.model import ModelSpec

_log = logging.getLogger(__name__)


class _Index(msgspec.Struct):
    """model.safetensors.index.json: tensor name → file name."""

    weight_map: dict[str, str]


def read_directory(folder: Path, name: str, weights_needed: bool, cache_dir: Path) -> ModelSpec:
    """Describe the model in a directory. Where weights are not needed (the sim device), they may be absent. A
    tokenizer.json that is put together from several files is written into `cache_dir`.

    Raises ModelError naming the file that is missing or cannot be served.
    """
    try:
        content = _read(folder, "config.json")
        config = read_config(content)
        generation = _generation(folder, content, config.decoder.vocab_size)
        tokenizer = read_tokenizer(folder, config.decoder.architecture, config.decoder.vocab_size, cache_dir)
        files = weights_files(folder) if weights_needed else ()
        digest = weights_digest(files)
    except OSError as error:
        raise ModelError(f"{error.filename or folder} cannot be read: {error.strerror}") from error
    if (folder / "adapter_config.json").is_file():
        _log.warning("%s has an adapter (adapter_config.json), which is not applied", folder)
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
        split_special_tokens=tokenizer.split_special_tokens,
        chat_template=tokenizer.chat_templates.default,
        tool_use_template=tokenizer.chat_templates.tool_use,
        template_origin=tokenizer.chat_templates.origin,
        special_tokens=tokenizer.special_tokens,
        sampling=generation.sampling,
    )


def weights_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files: model.safetensors, or the shards that the index names. Raises ModelError."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.is_file():
        if index.is_file():
            _log.warning("%s has %s and %s; the former counts, as in transformers", folder, single.name, index.name)
        return (single,)
    if index.is_file():
        return _shards(folder, index)
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    hint = f"; {', '.join(pickled)} can run code when read and is not served" if pickled else ""
    raise ModelError(f"{folder} has neither model.safetensors nor model.safetensors.index.json{hint}")


def _shards(folder: Path, index: Path) -> tuple[Path, ...]:
    names = sorted(set(decode_json(read_bounded(index), _Index, str(index)).weight_map.values()))
    for name in names:
        if "/" in name or "\0" in name or name in ("", ".", "..") or not name.endswith(".safetensors"):
            raise ModelError(f"{index}: {shown(name)} is not the name of a safetensors file beside it")
        if not (folder / name).is_file():
            raise ModelError(f"{index} names {name[:200]}, which is missing")
    if not names:
        raise ModelError(f"{index} names no file")
    return tuple(folder / name for name in names)


def _generation(folder: Path, config: bytes, vocab_size: int) -> HfGeneration:
    """generation_config.json; where it is missing, what config.json says under the same keys, as in transformers."""
    file = folder / "generation_config.json"
    if not file.is_file():
        return read_generation_config(config, vocab_size, "config.json")
    content = read_bounded(file)
    generation = read_generation_config(content, vocab_size)
    beside, counts = decode_object(config, "config.json"), decode_object(content, file.name)
    for key in SAMPLING_KEYS:
        if beside.get(key) not in (None, counts.get(key)):
            _log.warning("config.json sets %s = %s too; %s counts", key, shown(beside[key]), file.name)
    return generation


def _read(folder: Path, name: str) -> bytes:
    file = folder / name
    if not file.is_file():
        raise ModelError(f"{folder} has no {name}")
    return read_bounded(file)
