"""CURVE keys for workers on other hosts: made once into a folder, copied by hand to where a worker runs.

    engine.json   the engine's pair
    worker.json   the workers' pair, and the engine's public key

The engine lets in nobody but the holders of the workers' pair. Keys that others can read are refused. systemd's
credentials (LoadCredential=) may be root's and readable by an access list alone, whose mask stands where the group's
bits do: in the folder that systemd made for them they are private all the same.

It knows key files, not sockets.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from pagewire.scheduler_svc.startup_errors import SettingsError
from pagewire.scheduler_svc.supervisor.runtime_dir import check_private
from pagewire.wire.codec import WireError, decode_json
from pagewire.wire.launch import CurveKeys

_ENGINE, _WORKER = "engine.json", "worker.json"


def make_curve_keys(folder: Path) -> None:
    """Write new keys into a folder that is ours alone, created where it is missing. Never replaces keys."""
    import zmq

    engine_public, engine_secret = (key.decode("ascii") for key in zmq.curve_keypair())
    worker_public, worker_secret = (key.decode("ascii") for key in zmq.curve_keypair())
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_private(folder)
        for name, public, secret, peers in (
            (_ENGINE, engine_public, engine_secret, (worker_public,)),
            (_WORKER, worker_public, worker_secret, ()),
        ):
            keys = CurveKeys(server_public=engine_public, own_public=public, own_secret=secret, peers_public=peers)
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(msgspec.json.encode(keys) + b"\n")
    except FileExistsError as error:
        raise SettingsError(f"{error.filename} exists; keys are never replaced") from error
    except OSError as error:
        raise SettingsError(f"{error.filename or folder}: {error.strerror}") from error


def read_curve_keys(folder: Path, environ: Mapping[str, str]) -> tuple[CurveKeys, CurveKeys]:
    """The engine's and the workers' keys; `environ` names the folder of systemd's credentials, if any. Raises
    SettingsError for keys that others can read."""
    return _read(folder / _ENGINE, environ), _read(folder / _WORKER, environ)


def read_worker_keys(folder: Path, environ: Mapping[str, str]) -> CurveKeys:
    """The workers' keys, on a host that has no other. Raises SettingsError as above."""
    return _read(folder / _WORKER, environ)


def _is_private(path: Path, found: os.stat_result, environ: Mapping[str, str]) -> bool:
    if str(path.parent) == environ.get("CREDENTIALS_DIRECTORY"):
        return found.st_mode & 0o037 == 0 and found.st_uid in (0, os.geteuid())
    return found.st_mode & 0o077 == 0 and found.st_uid == os.geteuid()


def _read(path: Path, environ: Mapping[str, str]) -> CurveKeys:
    try:
        if not _is_private(path, path.stat(), environ):
            raise SettingsError(f"{path} must belong to user {os.geteuid()} and have mode 0600: it holds a secret key")
        return decode_json(path.read_bytes(), CurveKeys)
    except OSError as error:
        raise SettingsError(
            f"curve_dir: {path} cannot be read: {error.strerror}; `pagewire serve --make-curve-keys DIR` makes keys"
        ) from error
    except WireError as error:
        raise SettingsError(f"curve_dir: {path}: {error}") from error
