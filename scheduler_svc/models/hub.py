"""Models of the Hugging Face hub: safetensors, configuration and tokenizer files alone.

Pickled weights and Python files are never fetched, and nothing fetched is run. Files lie in the hub's own cache
(HF_HOME), shared with every other program that uses it. huggingface_hub is imported here, when a hub id is given, and
nowhere else.
"""

import errno
import io
import os
from pathlib import Path
from typing import Any

from pagewire.scheduler_svc.progress import Progress
from pagewire.scheduler_svc.startup_errors import ModelError

DESCRIPTION_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
WEIGHTS_FILES = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
"""What is fetched, by name rather than by ending: repositories hold other copies of the same weights
(consolidated.safetensors, original/), adapters, and evaluation results."""

_NOT_WRITTEN = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO}
)


def fetch_from_hub(repo: str, revision: str | None, weights_needed: bool, progress: Progress) -> Path:
    """The folder with the model's files, fetched where the hub's cache lacks them. Raises ModelError."""
    import huggingface_hub
    import huggingface_hub.constants
    import huggingface_hub.errors
    from tqdm import tqdm  # type: ignore[import-untyped]

    shown = repo if revision is None else f"{repo}@{revision}"
    stage = f"fetching {shown}"

    class Reporting(tqdm):  # type: ignore[misc]
        """Passes on the bytes counted; huggingface_hub takes progress only as a tqdm."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)  # an extension of huggingface_hub's own tqdm
            super().__init__(*args, **kwargs | {"file": io.StringIO(), "disable": False})

        def display(self, *_args: Any, **_kwargs: Any) -> None:
            if self.unit == "B" and self.total:
                progress.report(stage, min(0.99, self.n / self.total))

    try:
        folder = huggingface_hub.snapshot_download(
            repo,
            revision=revision,
            allow_patterns=[*DESCRIPTION_FILES, *(WEIGHTS_FILES if weights_needed else ())],
            tqdm_class=Reporting,
        )
    except (huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.HFValidationError) as error:
        raise ModelError(f"model {shown!r}: the hub answered: {str(error).strip()}") from error
    except Exception as error:  # the hub's client raises its HTTP library's errors too, and changes that library
        if isinstance(error, OSError) and error.errno in _NOT_WRITTEN:
            raise ModelError(
                f"model {shown!r}: the hub's cache {huggingface_hub.constants.HF_HUB_CACHE} cannot be written: "
                f"{error.strerror}; make room, or point HF_HOME at another folder"
            ) from error
        cause = (
            "HF_HUB_OFFLINE is set, and the hub's cache does not hold it"
            if huggingface_hub.constants.HF_HUB_OFFLINE
            else f"{huggingface_hub.constants.ENDPOINT} could not be reached, and the hub's cache does not hold it"
        )
        raise ModelError(
            f"model {shown!r}: {cause} ({huggingface_hub.constants.HF_HUB_CACHE}). Where the hub cannot be reached, "
            "copy the model's directory here and give its path to --model, point HF_HOME at a cache that holds it "
            "(HF_HUB_OFFLINE=1 then saves the attempt), or use --model smollm2-135m, which comes from the Python "
            f"package index. The cause: {_first_line(error)}"
        ) from error
    progress.report(stage, 1.0)
    return Path(folder)


def cached_hub_models() -> list[tuple[str, Path, int]]:
    """Repository, folder and size in bytes of each model in the hub's cache."""
    if not os.environ.get("HF_HOME") and not os.environ.get("HF_HUB_CACHE") and not _default_hub_cache().is_dir():
        return []
    import huggingface_hub

    try:
        repos = huggingface_hub.scan_cache_dir().repos
    except (huggingface_hub.CacheNotFound, ValueError):
        return []
    return sorted(
        (repo.repo_id, Path(repo.repo_path), repo.size_on_disk) for repo in repos if repo.repo_type == "model"
    )


def _default_hub_cache() -> Path:
    return Path(os.path.expanduser("~")) / ".cache" / "huggingface" / "hub"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
