"""The public contract, judged by buf: well-formed, and nothing that would break a client of the last release."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "proto"
CHECK = PROTO / "buf" / "check.sh"

pytestmark = pytest.mark.skipif(
    not (shutil.which("npm") and (PROTO / "buf" / "node_modules" / ".installed").is_file()),
    reason="buf is not installed: bash proto/buf/check.sh installs it with npm",
)


def check(contract: Path) -> subprocess.CompletedProcess[str]:
    """What the command says of the contract in this folder."""
    environment = {**os.environ, "PAGEWIRE_CONTRACT": str(contract)}
    return subprocess.run(["bash", str(CHECK)], env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def contract(tmp_path: Path) -> Path:
    """A copy to plant something in."""
    shutil.copytree(PROTO / "pagewire", tmp_path / "pagewire", ignore=shutil.ignore_patterns("*.py", "*.pyi", "__*"))
    shutil.copy(PROTO / "buf.yaml", tmp_path)
    return tmp_path


def change(contract: Path, file: str, before: str, after: str) -> None:
    path = contract / "pagewire" / "v1" / file
    text = path.read_text()
    assert text.count(before) == 1, f"{file} holds {before!r} {text.count(before)} times"
    path.write_text(text.replace(before, after))


def test_the_contract_is_well_formed_and_breaks_nobody() -> None:
    checked = check(PROTO)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("file", "before", "after", "found"),
    [
        ("generation.proto", "float temperature = 1;", "float temperature = 15;", 'field "1" with name "temperature"'),
        ("generation.proto", "uint32 max_tokens = 1;", "uint64 max_tokens = 1;", 'from "uint32" to "uint64"'),
        ("generation.proto", "optional uint32 min_tokens = 2;", "uint32 min_tokens = 2;", "cardinality"),
        ("generation.proto", "string cache_salt = 8;", "string salt = 8;", 'from "cache_salt" to "salt"'),
        ("generation.proto", "REASON_ABORTED = 5;", "REASON_ENDED = 5;", 'from "FINISH_REASON_ABORTED"'),
        ("inference.proto", "rpc Detokenize(", "rpc ToText(", 'present RPC "Detokenize"'),
        ("inference.proto", "(stream StreamGenerateResponse)", "(StreamGenerateResponse)", "to server unary"),
        ("admin.proto", "service AdminService", "service OperatorService", 'present service "AdminService"'),
    ],
)
def test_a_planted_break_is_found(contract: Path, file: str, before: str, after: str, found: str) -> None:
    change(contract, file, before, after)
    checked = check(contract)
    print(checked.stdout, checked.stderr)
    assert checked.returncode != 0
    assert found in checked.stdout


def test_what_is_added_breaks_nobody(contract: Path) -> None:
    change(
        contract,
        "inference.proto",
        "  // Seed, request id and prompt counts.\n",
        "  // New.\n  optional string new = 100;\n  // Seed, request id and prompt counts.\n",
    )
    checked = check(contract)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_field_without_a_comment_is_found(contract: Path) -> None:
    change(contract, "inference.proto", "  // Seed, request id and prompt counts.\n", "")
    checked = check(contract)
    assert checked.returncode != 0
    assert 'Field "started"' in checked.stdout + checked.stderr
