"""What a start decides and writes: device, dtype, lengths, the runtime directory, CURVE keys, launches, progress."""

import fcntl
import io
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import msgspec
import pytest

from pagewire.scheduler_svc.launch import EngineLaunch, FrontendLaunch
from pagewire.scheduler_svc.models.random_shapes import RANDOM_SHAPES, random_spec
from pagewire.scheduler_svc.progress import PlainProgress
from pagewire.scheduler_svc.settings.device import choose_device, choose_dtype, choose_max_model_len
from pagewire.scheduler_svc.settings.settings import Settings
from pagewire.scheduler_svc.startup_errors import SettingsError
from pagewire.scheduler_svc.supervisor.curve_keys import make_curve_keys, read_curve_keys
from pagewire.scheduler_svc.supervisor.runtime_dir import RuntimeDir
from pagewire.scheduler_svc.supervisor.server_plan import Addresses, ServerPlan
from pagewire.wire.launch import WorkerLaunch
from pagewire.wire.model import RopeScaling


@pytest.mark.parametrize(
    ("device", "dtype", "cpuinfo", "chosen"),
    [
        ("auto", "auto", "flags\t\t: fpu avx512f avx512_bf16\n", "bfloat16"),
        ("auto", "auto", "flags\t\t: fpu amx_bf16\n", "bfloat16"),
        ("auto", "auto", "Features\t: fp asimd bf16\n", "bfloat16"),
        ("auto", "auto", "flags\t\t: fpu avx2\nbugs\t: avx512_bf16\n", "float32"),
        ("auto", "auto", "", "float32"),
        ("auto", "float32", "flags: avx512_bf16\n", "float32"),
        ("cpu", "bfloat16", "", "bfloat16"),
        ("cuda", "auto", "", "bfloat16"),
    ],
)
def test_dtype(device: str, dtype: str, cpuinfo: str, chosen: str) -> None:
    settings = Settings(device=device, dtype=dtype)
    assert choose_dtype(settings, choose_device(settings), cpuinfo) == chosen


def test_max_model_len() -> None:
    decoder = RANDOM_SHAPES["qwen3-0.6b"]
    assert choose_max_model_len(Settings(), "cpu", decoder) == 8192
    assert choose_max_model_len(Settings(), "sim", decoder) == 40960
    assert choose_max_model_len(Settings(max_model_len=40960), "cpu", decoder) == 40960
    with pytest.raises(
        SettingsError, match="max_model_len = 40961 is more than the model's max_position_embeddings of 40960"
    ):
        choose_max_model_len(Settings(max_model_len=40961), "cpu", decoder)
    windowed = msgspec.structs.replace(decoder, sliding_window=4096)
    assert choose_max_model_len(Settings(), "sim", windowed) == 4096
    with pytest.raises(SettingsError, match="more than the model's sliding_window of 4096"):
        choose_max_model_len(Settings(max_model_len=4097), "cpu", windowed)
    yarn = RopeScaling(kind="yarn", factor=4.0, original_max_position_embeddings=32768)
    assert choose_max_model_len(Settings(), "sim", msgspec.structs.replace(decoder, rope_scaling=yarn)) == 131072


def plan(settings: Settings, **changes: object) -> ServerPlan:
    values = {
        "settings": settings,
        "model": random_spec("tiny", 7),
        "device": "sim",
        "dtype": "bfloat16",
        "max_model_len": 4096,
        "runtime_dir": Path("/run/pw"),
        "started_unix_s": 1.0,
    }
    return ServerPlan(**values | changes)


def test_launches_survive_their_files() -> None:
    settings = Settings(
        frontends=2,
        tls_certificate="c",
        tls_key="k",
        num_threads=3,
        attention_backend="triton",
        quantization="int8",
    )
    made = plan(settings)
    worker, engine = made.worker_launch(0, 2), made.engine_launch(3)
    first = made.frontend_launch(0, 0, None)
    second = made.frontend_launch(1, 1, Addresses("127.0.0.1:9", "127.0.0.1:8"))
    for launch, kind in (
        (worker, WorkerLaunch),
        (engine, EngineLaunch),
        (first, FrontendLaunch),
        (second, FrontendLaunch),
    ):
        assert msgspec.json.decode(msgspec.json.encode(launch), type=kind) == launch
    assert (worker.attention_backend, worker.block_size, worker.quantization) == ("triton", None, "int8")
    assert worker.engine == engine.workers
    assert first.engine == engine.frontends
    assert (first.listen, first.admin_listen) == ("127.0.0.1:50051", "127.0.0.1:50052")
    assert (second.listen, second.admin_listen, second.reuse_port) == ("127.0.0.1:9", None, True)
    assert first.tls is not None
    assert first.settings["num_threads"] == "3"
    assert first.settings["kv_cache_bytes"] == ""


def test_tcp_workers_get_keys(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    make_curve_keys(folder)
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    engine_keys, worker_keys = read_curve_keys(folder, {})
    settings = Settings(worker_transport="tcp://10.0.0.1:5", curve_dir=str(folder))
    made = plan(settings, engine_keys=engine_keys, worker_keys=worker_keys)
    engine, worker = made.engine_launch(0).workers, made.worker_launch(0, 0).engine
    assert engine.address == worker.address == "tcp://10.0.0.1:5"
    assert engine.curve is not None
    assert worker.curve is not None
    assert worker.curve.server_public == engine.curve.own_public
    assert engine.curve.peers_public == (worker.curve.own_public,)
    assert made.engine_launch(0).frontends.curve is None
    with pytest.raises(SettingsError, match="exists; keys are never replaced"):
        make_curve_keys(folder)
    (folder / "worker.json").chmod(0o644)
    with pytest.raises(SettingsError, match=r"must belong to user .* and have mode 0600"):
        read_curve_keys(folder, {})
    with pytest.raises(SettingsError, match="--make-curve-keys DIR` makes keys"):
        read_curve_keys(tmp_path / "none", {})


def test_credentials_of_systemd_may_be_read_by_a_list_and_by_nobody_else(tmp_path: Path) -> None:
    make_curve_keys(tmp_path / "keys")
    kept = tmp_path / "credentials"
    (tmp_path / "keys").rename(kept)
    for file in kept.iterdir():
        file.chmod(0o440)  # the mask of an access list stands where the group's bits do
    with pytest.raises(SettingsError, match="have mode 0600"):
        read_curve_keys(kept, {})
    with pytest.raises(SettingsError, match="have mode 0600"):
        read_curve_keys(kept, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    engine_keys, worker_keys = read_curve_keys(kept, {"CREDENTIALS_DIRECTORY": str(kept)})
    assert engine_keys.peers_public == (worker_keys.own_public,)
    (kept / "worker.json").chmod(0o444)
    with pytest.raises(SettingsError, match="have mode 0600"):
        read_curve_keys(kept, {"CREDENTIALS_DIRECTORY": str(kept)})


def test_a_cleaner_of_temporary_files_spares_the_runtime_dir(tmp_path: Path) -> None:
    if shutil.which("systemd-tmpfiles") is None:
        pytest.skip("systemd-tmpfiles is not installed")
    old_s = 1_000_000_000
    with tempfile.TemporaryDirectory(prefix="pw", dir=Path.home()) as base:  # it has rules of its own for /tmp
        loose = Path(base) / "loose"
        loose.mkdir()
        (loose / "file").touch()
        with RuntimeDir.open(f"{base}/ours") as ours:
            ours.write("engine-0.json", b"x")
            (tmp_path / "clean.conf").write_text(f"d {base} 0700 - - mM:1s\n")
            for path in (loose / "file", loose, *ours.path.iterdir(), ours.path):
                os.utime(path, (old_s, old_s))
            subprocess.run(["systemd-tmpfiles", "--clean", str(tmp_path / "clean.conf")], check=True)
            assert not (loose / "file").exists()
            assert sorted(path.name for path in ours.path.iterdir()) == ["engine-0.json", "lock"]
            ours.refresh()
            assert {path.stat().st_mtime > old_s for path in (ours.path, *ours.path.iterdir())} == {True}


def test_a_runtime_dir_that_is_gone_is_made_again_and_still_held(caplog: pytest.LogCaptureFixture) -> None:
    with tempfile.TemporaryDirectory(prefix="pw") as base:
        named = Path(base) / "named"
        with RuntimeDir.open(str(named)) as opened:
            opened.write("engine-0.json", b"x")
            assert opened.missing(["engine-0.json", "frontends.sock"]) == ["frontends.sock"]
            shutil.rmtree(named)
            opened.refresh()
            opened.remove("ranks.store")
            assert opened.write("worker-0.json", b"y").read_bytes() == b"y"
            assert "was removed, perhaps by a cleaner of temporary files" in caplog.text
            assert stat.S_IMODE(named.stat().st_mode) == 0o700
            with pytest.raises(SettingsError, match="is in use by another server"):
                RuntimeDir.open(str(named))
            shutil.rmtree(named)
        assert not named.exists()


def test_a_runtime_dir_that_somebody_else_locks_is_taken_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with tempfile.TemporaryDirectory(prefix="pw") as named:
        somebody = os.open(named, os.O_RDONLY)
        try:
            fcntl.flock(somebody, fcntl.LOCK_EX)
            with RuntimeDir.open(named) as opened:
                assert opened.write("engine-0.json", b"x").read_bytes() == b"x"
            assert caplog.text.count("cannot be locked against cleaners of temporary files") == 1
        finally:
            os.close(somebody)


def test_runtime_dir_must_be_private() -> None:
    with tempfile.TemporaryDirectory(prefix="pw") as base:
        made = Path(base) / "made" / "deep"
        with RuntimeDir.open(str(made)) as opened:
            assert stat.S_IMODE(made.stat().st_mode) == 0o700
            file = opened.write("engine-0.json", b"x")
            assert opened.write("engine-0.json", b"y").read_bytes() == b"y"
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert not made.exists()
        open_dir = Path(base) / "open"
        open_dir.mkdir()
        open_dir.chmod(0o755)
        with pytest.raises(SettingsError, match="has mode 0755; it must be 0700"):
            RuntimeDir.open(str(open_dir))
        link = Path(base) / "link"
        link.symlink_to(base)
        with pytest.raises(SettingsError, match="must be a directory, and not a link to one"):
            RuntimeDir.open(str(link))
        with pytest.raises(SettingsError, match=r"is too long: a socket's path in it has .* bytes, the limit is 107"):
            RuntimeDir.open(str(Path(base) / ("x" * 100)))


def test_plain_progress_says_each_stage_begins_and_ends() -> None:
    now_s = 0.0
    out = io.StringIO()
    progress = PlainProgress(out, lambda: now_s)
    for fraction in (0.0, 0.1, 0.2):
        progress.report("reading", fraction)
    now_s = 6.0
    progress.report("reading", 0.5)
    progress.report("reading", 1.0)
    progress.report("packing", 1.0)
    assert out.getvalue().splitlines() == ["reading: 0%", "reading: 50%", "reading: done", "packing: done"]
