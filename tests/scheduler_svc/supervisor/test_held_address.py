"""One address, one server: real sockets, real processes, and the kernel as the judge."""

import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagewire.scheduler_svc.startup_errors import SettingsError
from pagewire.scheduler_svc.supervisor.held_address import HeldAddress

HOLDER = """
import sys
from pagewire.scheduler_svc.startup_errors import SettingsError
from pagewire.scheduler_svc.supervisor.held_address import HeldAddress
print("loaded", flush=True)
sys.stdin.readline()
try:
    held = HeldAddress.hold("listen", sys.argv[1], is_shared=True)
    print("held", flush=True)
except SettingsError as error:
    print(error, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def port() -> int:
    """One that nobody uses."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def unix_path() -> Iterator[Path]:
    """Not in tmp_path: a Unix socket's path may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="pw") as directory:
        yield Path(directory) / "socket"


def hold(address: str, *, is_shared: bool = True) -> HeldAddress:
    return HeldAddress.hold("listen", address, is_shared=is_shared)


def frontend(port: int, *, host: str = "127.0.0.1", reuse_port: bool = True) -> socket.socket:
    """A listening socket, with gRPC's options."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(reuse_port))
    listener.bind((host, port))
    listener.listen()
    return listener


def holders(number: int, address: str) -> list[subprocess.Popen[str]]:
    """Processes that wait for the word to take it."""
    found = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDER, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(number)
    ]
    for holder in found:
        assert said(holder) == "loaded"
    return found


def said(holder: subprocess.Popen[str]) -> str:
    assert holder.stdout is not None
    return holder.stdout.readline().strip()


def go(holder: subprocess.Popen[str]) -> None:
    assert holder.stdin is not None
    holder.stdin.write("\n")
    holder.stdin.flush()


@pytest.mark.parametrize("other", ["127.0.0.1", "0.0.0.0", "localhost", "[::]"])
def test_a_port_is_held_against_every_address_that_covers_it(port: int, other: str) -> None:
    with hold(f"127.0.0.1:{port}"):
        with pytest.raises(SettingsError, match=f"listen = .*{port}' cannot be listened on: Address already in use"):
            hold(f"{other}:{port}")
        hold(f"127.0.0.2:{port}").close()
        with pytest.raises(OSError, match="in use"):
            frontend(port, reuse_port=False)
    hold(f"{other}:{port}").close()


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
def test_a_port_of_every_address_is_held_on_each(port: int, host: str) -> None:
    with hold(f"{host}:{port}"):
        for other in ("127.0.0.1", "0.0.0.0", "[::]"):
            with pytest.raises(SettingsError, match="in use"):
                hold(f"{other}:{port}")
        frontend(port, host="0.0.0.0").close()


def test_the_servers_own_frontends_come_and_go(port: int) -> None:
    with hold(f"127.0.0.1:{port}"):
        first, second = frontend(port), frontend(port)
        for _ in range(16):
            # None is given to the holder, who would never answer.
            client = socket.create_connection(("127.0.0.1", port))
            first.setblocking(False)
            second.setblocking(False)
            accepted = []
            while not accepted:
                for listener in (first, second):
                    try:
                        accepted.append(listener.accept()[0])
                    except BlockingIOError:
                        continue
            accepted[0].close()  # its end is first, so that it is this side that keeps the port for a minute
            client.close()
        first.close()
        second.close()
        with pytest.raises(SettingsError, match="in use"):
            hold(f"127.0.0.1:{port}")
        frontend(port).close()
    hold(f"127.0.0.1:{port}").close()


def test_somebody_who_listens_already_keeps_it(port: int) -> None:
    for reuse_port in (False, True):
        with frontend(port, reuse_port=reuse_port), pytest.raises(SettingsError, match="in use"):
            hold(f"127.0.0.1:{port}")


def test_nothing_is_held_where_the_kernel_decides(port: int) -> None:
    hold("127.0.0.1:0").close()
    with hold(f"127.0.0.1:{port}", is_shared=False):
        frontend(port, reuse_port=False).close()


def test_of_those_that_come_at_the_same_moment_one_holds(port: int, unix_path: Path) -> None:
    for address in (f"127.0.0.1:{port}", f"unix:{unix_path}"):
        found = holders(4, address)
        for holder in found:
            go(holder)
        answers = [said(holder) for holder in found]
        assert answers.count("held") == 1
        assert all(answer == "held" or "cannot be listened on" in answer for answer in answers)
        for holder in found:
            holder.kill()
            holder.communicate()
        # Killed, none leaves anything that holds.
        hold(address).close()


def test_a_unix_socket_is_held_by_a_lock_that_goes_with_it(unix_path: Path) -> None:
    address = f"unix:{unix_path}"
    with hold(address), pytest.raises(SettingsError, match="cannot be listened on: another server listens there"):
        hold(address, is_shared=False)
    assert not list(unix_path.parent.iterdir())
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(unix_path))
        stranger.listen()
        with pytest.raises(SettingsError, match="somebody listens there"):
            hold(address, is_shared=False)
    # What a killed server leaves is a file that nobody listens behind.
    hold(address, is_shared=False).close()
