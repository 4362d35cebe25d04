"""CURVE keys for workers on other hosts: made once into a folder, copied by hand to where a worker runs.

    engine.json   the engine's pair
    worker.json   the workers' pair, and the engine's public key

The engine lets in nobody but the holders of the workers' pair.

It knows key files, not sockets.
"""

import os
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


def read_curve_keys(folder: Path) -> tuple[CurveKeys, CurveKeys]:
    """The engine's and the workers' keys. Raises SettingsError for keys that others can read."""
    return _read(folder / _ENGINE), _read(folder / _WORKER)


def read_worker_keys(folder: Path) -> CurveKeys:
    """The workers' keys, on a host that has no other. Raises SettingsError as above."""
    return _read(folder / _WORKER)


def _read(path: Path) -> CurveKeys:
    try:
        found = path.stat()
        if found.st_mode & 0o077 or found.st_uid != os.geteuid():
            raise SettingsError(f"{path} must belong to user {os.geteuid()} and have mode 0600: it holds a secret key")
        return decode_json(path.read_bytes(), CurveKeys)
    except OSError as error:
        raise SettingsError(
            f"curve_dir: {path} cannot be read: {error.strerror}; `pagewire serve --make-curve-keys DIR` makes keys"
        ) from error
    except WireError as error:
        raise SettingsError(f"curve_dir: {path}: {error}") from error
