"""From the text of `--model` to a `ModelSpec`, fetching what is missing."""

import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec

from pagewire.scheduler_svc.models.carried import CARRIED_MODELS, fetch_carried
from pagewire.scheduler_svc.models.random_shapes import random_spec
from pagewire.scheduler_svc.models.source import Carried, Directory, GgufFile, HubModel, RandomModel, parse_source
from pagewire.scheduler_svc.progress import Progress
from pagewire.wire.model import ModelSpec

_log = logging.getLogger(__name__)


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
        case Carried(name):
            from pagewire.scheduler_svc.models.gguf_file import read_gguf

            path = fetch_carried(CARRIED_MODELS[name], cache_dir, environ, progress)
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
            from pagewire.scheduler_svc.models.hub import fetch_from_hub

            folder = fetch_from_hub(repo, revision, weights_needed, progress)
            spec = read_directory(folder, repo, weights_needed, cache_dir)
    _log.debug("model %s: %s", text, source)
    return msgspec.structs.replace(spec, name=served_name) if served_name else spec
