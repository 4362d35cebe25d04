"""The systemd units, installed into a folder: systemd's own tools judge them, and they agree with the settings."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pagewire.scheduler_svc.settings.settings import Settings

PROJECT = Path(__file__).parents[2]
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")

SERVER, WORKER = "pagewire.service", "pagewire-worker@.service"
KEYS = "curve,api-keys,tls,client-ca"


def install(root: Path, *arguments: str, status: int = 0, umask: int = -1) -> str:
    """What the script says, of a run that ends with this status."""
    command = ["bash", str(PROJECT / "deploy" / "install.sh"), "--root", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, umask=umask)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def unit_of(root: Path, name: str) -> Path:
    return root / "etc" / "systemd" / "system" / name


def values_of(text: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with the program, as far as units look for it."""
    for program in ("opt/pagewire/bin/pagewire", "bin/kill"):
        (tmp_path / program).parent.mkdir(parents=True)
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    return tmp_path


@needs_systemd
@pytest.mark.parametrize(
    ("name", "flags", "most"),
    [
        (SERVER, (), 2.0),
        (SERVER, ("--with", KEYS), 2.0),
        (SERVER, ("--with", f"gpu,{KEYS}"), 4.5),
        (WORKER, ("--worker",), 2.0),
        (WORKER, ("--worker", "--with", "gpu"), 4.5),
    ],
)
def test_systemd_finds_nothing_wrong_and_little_exposed(
    root: Path, name: str, flags: tuple[str, ...], most: float
) -> None:
    install(root, "--units-only", *flags)
    instance = name.replace("@", "@1")
    for command in (
        ["verify", "--man=no", "--recursive-errors=no", instance],
        ["security", "--offline=true", f"--threshold={round(most * 10)}", "--no-pager", instance],
    ):
        done = subprocess.run(
            ["systemd-analyze", f"--root={root}", *command], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None
    assert float(found[1]) <= most


def test_a_service_has_time_to_drain_and_its_watchdog_is_more_patient_than_the_supervisor() -> None:
    text = (PROJECT / "deploy" / "systemd" / SERVER).read_text()
    settings = Settings()
    (stop_s,) = map(float, values_of(text, "TimeoutStopSec"))
    (watchdog_s,) = map(float, values_of(text, "WatchdogSec"))
    assert stop_s > settings.drain_delay_s + settings.drain_grace_s + 10
    assert watchdog_s >= settings.hang_timeout_s + 60
    assert values_of(text, "Type") == ["notify"]


def test_what_a_drop_in_loads_is_what_its_settings_name() -> None:
    for file in (PROJECT / "deploy" / "systemd").glob("*.conf"):
        text = file.read_text()
        loaded = {line.partition(":")[0] for line in values_of(text, "LoadCredential")}
        named = dict(pair.split("=") for line in values_of(text, "Environment") for pair in line.split())
        assert {variable.removeprefix("PAGEWIRE_").lower() for variable in named} <= set(Settings.__struct_fields__)
        if named.get("PAGEWIRE_CURVE_DIR") == "%d":
            assert loaded == {"engine.json", "worker.json"}
        else:
            assert {path.removeprefix("%d/") for path in named.values()} == loaded, file.name


def test_it_installs_again_over_itself_and_leaves_settings(root: Path) -> None:
    install(root, "--units-only", "--with", "curve,tls", "--prefix", "/srv/pagewire")
    settings = root / "etc" / "pagewire" / "pagewire.toml"
    settings.write_text('model = "mine"\n')
    install(root, "--units-only", "--with", "api-keys", "--prefix", "/srv/pagewire")
    assert settings.read_text() == 'model = "mine"\n'
    unit = unit_of(root, SERVER)
    assert "\nExecStart=/srv/pagewire/bin/pagewire serve " in unit.read_text()
    assert [file.name for file in Path(f"{unit}.d").iterdir()] == ["api-keys.conf"]
    assert (root / "etc" / "pagewire" / "tls").stat().st_mode & 0o777 == 0o700


def test_an_upgrade_keeps_its_drop_ins_and_never_touches_the_operators(root: Path) -> None:
    install(root, "--units-only", "--with", "gpu,tls")
    folder = Path(f"{unit_of(root, SERVER)}.d")
    (folder / "override.conf").write_text("[Service]\nNice=5\n")
    assert " with gpu tls\n" in install(root, "--units-only")
    assert {file.name for file in folder.iterdir()} == {"gpu.conf", "tls.conf", "override.conf"}
    install(root, "--units-only", "--with", "")
    install(root, "--uninstall", "--prefix", str(root / "none"))
    assert [file.name for file in folder.iterdir()] == ["override.conf"]
    assert not unit_of(root, SERVER).exists()


def test_the_services_user_can_read_whatever_the_callers_umask_is(root: Path) -> None:
    install(root, "--units-only", "--with", "tls", umask=0o077)
    unit = unit_of(root, SERVER)
    modes = [path.stat().st_mode & 0o777 for path in (unit, Path(f"{unit}.d"), root / "etc" / "pagewire")]
    assert modes == [0o644, 0o755, 0o755]


def test_uninstalling_takes_ranks_out_of_the_boot(root: Path) -> None:
    install(root, "--units-only", "--worker")
    wants = unit_of(root, "multi-user.target.wants")
    wants.mkdir()
    for rank in ("pagewire-worker@1.service", "pagewire-worker@12.service"):
        (wants / rank).symlink_to(unit_of(root, WORKER))
    (wants / "pagewire-worker-of-others.service").touch()
    install(root, "--uninstall", "--prefix", str(root / "none"))
    assert [file.name for file in wants.iterdir()] == ["pagewire-worker-of-others.service"]


def test_uninstalling_leaves_settings_and_keys_and_purging_nothing(root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc" / "other").touch()
    prefix = root / "opt" / "pagewire"
    (prefix / "pyvenv.cfg").touch()
    install(root, "--units-only", "--with", "tls")
    install(root, "--units-only", "--worker", "--with", "gpu")
    install(root, "--uninstall", "--prefix", str(prefix))
    assert not prefix.exists()
    assert list((root / "etc" / "systemd" / "system").iterdir()) == []
    assert (root / "etc" / "pagewire" / "pagewire.toml").exists()
    install(root, "--uninstall", "--purge", "--prefix", str(prefix))
    assert {file.name for file in (root / "etc").iterdir()} == {"other", "systemd"}


def test_a_folder_that_is_no_environment_stays(root: Path) -> None:
    prefix = root / "opt" / "pagewire"
    install(root, "--uninstall", "--purge", "--prefix", str(prefix))
    assert (prefix / "bin" / "pagewire").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--with", "gppu"), "--with gppu: pagewire.service has no such drop-in"),
        (("--worker", "--with", "tls"), "--with tls: pagewire-worker@.service has no such drop-in"),
        (("--prefix", "here"), "--prefix here must be absolute"),
        (("--prefix",), "--prefix needs a value"),
        (("--purge",), "--purge is for --uninstall"),
        (("--now",), "unknown argument --now"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(root: Path, arguments: tuple[str, ...], said: str) -> None:
    assert said in install(root, "--units-only", *arguments, status=2)
    assert not (root / "etc").exists()
