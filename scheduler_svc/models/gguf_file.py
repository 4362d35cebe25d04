"""A GGUF model, in one file or several → `ModelSpec` and a tokenizer.json.

What was made of the metadata is kept in the cache folder under the files' digest, sizes and modification times: a
second start reads only that, in 20 ms. No tensor's data is read but for the digest.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from pagewire.scheduler_svc.models.cache import make_cache_folder, write_atomically, writing_cache
from pagewire.scheduler_svc.models.files import sha256_of, weights_digest
from pagewire.scheduler_svc.models.gguf_config import decoder_config, sampling
from pagewire.scheduler_svc.models.gguf_parts import GgufModel, part_files, read_parts
from pagewire.scheduler_svc.models.gguf_tokenizer import GgufTokenizer, build_tokenizer
from pagewire.scheduler_svc.progress import Progress
from pagewire.scheduler_svc.startup_errors import ModelError
from pagewire.wire.codec import WireError, decode_json
from pagewire.wire.model import ModelSpec

_log = logging.getLogger(__name__)

_READER_VERSION = 7
"""Part of the cache key: raise it when what is read from a file changes."""


class _Described(msgspec.Struct, frozen=True):
    """What is kept of a model: what it is, and what every start with it says."""

    spec: ModelSpec
    warnings: list[str]


def read_gguf(path: Path, name: str, cache_dir: Path, progress: Progress) -> ModelSpec:
    """Describe the model in a GGUF file, or in the parts of which this is the first. Raises ModelError naming the key
    that is missing or cannot be served."""
    with _readable(path):
        files = part_files(path)
        digest = weights_digest(files)
        stats = [file.stat() for file in files]
    times = " ".join(f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats)
    key = hashlib.sha256(f"{_READER_VERSION} {digest} {times}".encode()).hexdigest()[:32]
    folder = cache_dir / "gguf" / key
    described = _from_cache(folder)
    if described is None:
        stage = f"reading {path.name}"
        progress.report(stage, 0.0)
        with _readable(path):
            model = read_parts(files)
        with writing_cache(folder):
            described = _describe(model, folder, path.name, digest)
        progress.report(stage, 1.0)
    for warning in described.warnings:
        _log.warning("%s", warning)
    return msgspec.structs.replace(described.spec, name=name, weights_files=tuple(map(str, files)))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelError(f"{error.filename or path} cannot be read: {error.strerror}") from error


def _describe(model: GgufModel, folder: Path, origin: str, digest: str) -> _Described:
    """Read the metadata, and leave spec and tokenizer in `folder`."""
    warnings: list[str] = []
    decoder = decoder_config(model, origin, warnings.append)
    defaults = sampling(model.values, decoder.vocab_size, origin, warnings.append)
    tokenizer: GgufTokenizer = build_tokenizer(dict(model.values), decoder.vocab_size, origin, warnings.append)
    make_cache_folder(folder)
    content = tokenizer.definition.encode()
    write_atomically(folder / "tokenizer.json", content)
    spec = ModelSpec(
        name="",
        decoder=decoder,
        weights_format="gguf",
        weights_files=(),
        weights_digest=digest,
        eos_token_ids=tokenizer.eos_token_ids,
        tokenizer_file=str(folder / "tokenizer.json"),
        tokenizer_digest=sha256_of(content),
        chat_template=tokenizer.chat_templates.default,
        tool_use_template=tokenizer.chat_templates.tool_use,
        template_origin=tokenizer.chat_templates.origin,
        special_tokens=tokenizer.special_tokens,
        sampling=defaults,
    )
    described = _Described(spec, warnings)
    write_atomically(folder / "spec.json", msgspec.json.encode(described))
    return described


def _from_cache(folder: Path) -> _Described | None:
    """What an earlier start left: spec.json is written last, so tokenizer.json is there when it is."""
    try:
        described = decode_json((folder / "spec.json").read_bytes(), _Described)
        definition = (folder / "tokenizer.json").read_bytes()
    except (OSError, WireError):
        return None
    if sha256_of(definition) != described.spec.tokenizer_digest:
        return None
    spec = msgspec.structs.replace(described.spec, tokenizer_file=str(folder / "tokenizer.json"))
    return msgspec.structs.replace(described, spec=spec)
