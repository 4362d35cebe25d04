"""Model files that lie about counts, sizes and numbers: a sentence that names the file, in little time and memory.

The files come from a seed (`support/hostile_files.py`) and are read in a process of their own, so that its memory is
what reading took. PAGEWIRE_HOSTILE_FILES sets how many of each kind, 600 otherwise.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.model_files import GgufSource

SCRIPT = Path(__file__).parents[2] / "support" / "hostile_files.py"
COUNT = int(os.environ.get("PAGEWIRE_HOSTILE_FILES", "600"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gguf", "directory", "weights"])
def test_a_sentence_in_two_seconds_and_300_mb(kind: str, gguf_source: GgufSource, tmp_path: Path) -> None:
    gguf_source.chat_template = "{{ messages }}"
    gguf_source.numbers |= {"rope.scaling.factor": 2.0, "attention.sliding_window": 128, "vocab_size": 262}
    gguf_source.write(tmp_path / "m.gguf")
    save_file({"a": np.zeros((4, 8), np.float32), "b": np.zeros(3, np.float16)}, tmp_path / "m.safetensors")
    seed = int.from_bytes(os.urandom(4), "little")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), kind, str(tmp_path), str(seed), str(COUNT)],
        capture_output=True,
        text=True,
        timeout=280 + COUNT / 2,
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-2000:]}"
    report = json.loads(done.stdout)
    assert not report["failures"], f"seed {seed}: {report['failures'][:5]}"
    assert report["slowest_s"][0] < 2, f"seed {seed}: {report['slowest_s']}"
    assert report["largest_kib"][0] < 300 * 1024, f"seed {seed}: {report['largest_kib']}"
    # Changes of a value may leave a model; but files are refused mostly, or the generator proves little.
    assert report["outcomes"]["refused"] > COUNT // 4
