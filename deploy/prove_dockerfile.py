"""Proves the Dockerfile where there is no container engine: runs its lines in a clean root, and serves from there.

    python3 deploy/prove_dockerfile.py --work DIR [--stage scheduler] [--root DIR | --mirror URL] [--bind DIR ...]

Needs root on Linux, util-linux, iproute2 and, without --root, debootstrap. For each stage on the way to those asked for
it copies the root of the stage before, gives COPY what the line names and nothing else, and runs each RUN line with
chroot in namespaces of its own. Then, for each image, as the image's user, with the tree mounted read-only, without
capabilities and without a network but loopback: the entry point serves, HEALTHCHECK's command is asked until it is
content, one request is answered, a write is tried and fails, and SIGTERM drains. It prints the size of each image.

It knows the instructions that our Dockerfile has and refuses others. The base is a Debian of the release that FROM
names, without that image's own thinning, so sizes are above an engine's. What this machine needs to reach its package
indexes (resolv.conf, proxies, PIP_*, the CA file of PIP_CERT; --bind for more) is lent to RUN lines and stays in none.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
IMAGES = {
    "scheduler": ("--device=sim", "--model=random:tiny@5"),
    "worker-cpu": ("--device=cpu", "--model=random:tiny@5"),
    "worker-cuda": ("--device=cpu", "--model=random:tiny@5"),
}
"""Image → what it serves here: a model that needs no network, on a device that every machine has."""
RELEASES = {"debian:12": "bookworm", "debian:13": "trixie"}
LENT_VARIABLE = re.compile(r"PIP_|https?_proxy$|no_proxy$", re.IGNORECASE)
ARGUMENT = "PIP_EXTRA_INDEX_URL"
"""Where to find torch for CPUs: for the stage that asks for it."""
LENT_CA = "/run/lent-ca.pem"
WRITABLE = ("/tmp", "/var/cache/pagewire")

IN_ROOT = """
mount --make-rprivate /
mount --bind "$ROOT" "$ROOT"
mount -t proc proc "$ROOT/proc"
mount -t tmpfs -o mode=755 dev "$ROOT/dev"
for name in null zero full random urandom; do
  touch "$ROOT/dev/$name"
  mount --bind "/dev/$name" "$ROOT/dev/$name"
done
ln -s /proc/self/fd "$ROOT/dev/fd"
mkdir -m 1777 "$ROOT/dev/shm"
"""
BUILD = """
mount -t tmpfs run "$ROOT/run"
touch "$ROOT/etc/resolv.conf"
mount --bind /etc/resolv.conf "$ROOT/etc/resolv.conf"
[ -z "$LENT" ] || { touch "$ROOT$LENT_CA" && mount --bind "$LENT" "$ROOT$LENT_CA"; }
for path in $BINDS; do
  mkdir -p "$ROOT$path"
  mount --bind -o ro "$path" "$ROOT$path"
done
exec chroot "$ROOT" /usr/bin/env -i "$@"
"""
SERVE = """
for path in $WRITABLE; do
  mount -t tmpfs -o mode=0700,uid=$UID_,gid=$GID_ writable "$ROOT$path"
done
mount -o remount,bind,ro "$ROOT"
ip link set lo up
exec chroot "$ROOT" /usr/bin/setpriv --reuid="$UID_" --regid="$GID_" --clear-groups --no-new-privs \
  --bounding-set=-all /usr/bin/env -i "$@"
"""
ASK = """
set -eu
HEALTH >/dev/null 2>&1 && { echo "healthy before it serves" >&2; exit 1; }
SERVER &
server=$!
until HEALTH; do kill -0 $server; done
pagewire generate --ids 1,2,3 --max-tokens 4 --json
id
if touch /opt/pagewire/written 2>/dev/null; then echo "the tree can be written" >&2; exit 1; fi
kill -TERM $server
wait $server
"""


class DockerfileError(Exception):
    """A line that this script does not know, or one that failed."""


@dataclass
class Stage:
    """A stage: its base, its lines, and what they set."""

    name: str
    base: str
    lines: list[tuple[str, str]] = field(default_factory=list)
    needs: set[str] = field(default_factory=set)
    """Other stages that it copies from."""


def read_stages(text: str) -> tuple[dict[str, Stage], dict[str, str]]:
    """The stages in order, and the arguments before the first. Raises DockerfileError."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    stages: dict[str, Stage] = {}
    arguments: dict[str, str] = {}
    stage: Stage | None = None
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = stages[name] = Stage(name, base)
        elif stage is None:
            if word != "ARG":
                raise DockerfileError(f"{word} before FROM")
            name, _, value = rest.partition("=")
            arguments[name] = value
        else:
            stage.lines.append((word, rest))
            if found := re.match(r"--from=(\S+)", rest):
                stage.needs.add(found[1])
    return stages, arguments


@dataclass
class Image:
    """What a stage came to."""

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    directory: str = "/"
    user: str = "0:0"
    entry_point: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    health: tuple[str, ...] = ()
    arguments: set[str] = field(default_factory=set)
    """Names of its own ARG lines, which take this process's variables."""


class Builder:
    """Builds stages into folders of `work`, each once."""

    def __init__(self, work: Path, base: Path, binds: list[str]) -> None:
        stages, self._arguments = read_stages((PROJECT / "deploy" / "Dockerfile").read_text())
        self._stages = stages
        self._work = work
        self._base = base
        self._binds = binds
        self._built: dict[str, Image] = {}

    def build(self, name: str) -> Image:
        """The image of a stage. Raises DockerfileError."""
        if name in self._built:
            return self._built[name]
        stage = self._stages[name]
        before = self.build(stage.base) if stage.base in self._stages else Image(self._base)
        for other in stage.needs:
            self.build(other)
        print(f"== {name}, from {stage.base}", flush=True)
        root = self._work / name
        shutil.rmtree(root, ignore_errors=True)
        subprocess.run(["cp", "-a", "--reflink=auto", str(before.root), str(root)], check=True)
        image = Image(root, dict(before.environment), before.directory, before.user, before.entry_point, before.command)
        image.health = before.health
        for word, rest in stage.lines:
            print(f"{word} {rest}"[:160], flush=True)
            self._step(image, word, rest)
        self._built[name] = image
        return image

    def _step(self, image: Image, word: str, rest: str) -> None:
        match word:
            case "RUN":
                self._run(image, rest)
            case "COPY":
                self._copy(image, rest)
            case "ENV":
                image.environment |= dict(pair.split("=", 1) for pair in shlex.split(rest))
            case "WORKDIR":
                image.directory = rest
                (image.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "USER":
                image.user = rest
            case "ENTRYPOINT":
                image.entry_point = tuple(json.loads(rest))
            case "CMD":
                image.command = tuple(json.loads(rest))
            case "HEALTHCHECK":
                image.health = tuple(json.loads(rest.split(" CMD ", 1)[1]))
            case "ARG":
                image.arguments.add(rest.partition("=")[0])
            case "EXPOSE" | "STOPSIGNAL":
                pass
            case _:
                raise DockerfileError(f"this script does not know {word}")

    def _run(self, image: Image, line: str) -> None:
        lent = {name: value for name, value in os.environ.items() if LENT_VARIABLE.match(name)}
        if ARGUMENT not in image.arguments:
            lent.pop(ARGUMENT, None)
        ca = lent.get("PIP_CERT", "")
        lent |= {"PIP_CERT": LENT_CA} if ca else {}
        variables = [f"{name}={value}" for name, value in (image.environment | lent).items()]
        in_shell = ["/bin/sh", "-ec", f"cd {shlex.quote(image.directory)}\n{line}"]
        setup = {"ROOT": str(image.root), "LENT": ca, "LENT_CA": LENT_CA, "BINDS": " ".join(self._binds)}
        _in_namespaces(IN_ROOT + BUILD, [*variables, *in_shell], setup)

    def _copy(self, image: Image, rest: str) -> None:
        *sources, target = rest.split()
        context = PROJECT
        if sources[0].startswith("--from="):
            context = self._built[sources.pop(0).removeprefix("--from=")].root
        # As COPY has it: the content of a folder, and files by name into a target that ends with a slash.
        into = image.root / os.path.join(image.directory, target).lstrip("/")
        for source in sources:
            found = context / source.lstrip("/")
            if found.is_dir():
                shutil.copytree(found, into, symlinks=True, dirs_exist_ok=True, ignore=_left_out)
            else:
                at = into / found.name if target.endswith("/") else into
                at.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(found, at)


def _left_out(folder: str, names: list[str]) -> set[str]:
    """As .dockerignore has it, of the project's own folders."""
    if not Path(folder).is_relative_to(PROJECT):
        return set()
    return {name for name in names if name in ("__pycache__", "node_modules") or name.endswith(".so")}


def _in_namespaces(script: str, arguments: list[str], variables: dict[str, str], *flags: str) -> None:
    command = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", *flags]
    done = subprocess.run(
        [*command, "sh", "-euc", script, "sh", *arguments], env=dict(os.environ) | variables, check=False
    )
    if done.returncode != 0:
        raise DockerfileError(f"ended with status {done.returncode}: {arguments[-1]}")


def serve_from(image: Image, settings: tuple[str, ...]) -> None:
    """Serve, be healthy, answer and drain, as the image's user. Raises DockerfileError."""
    user, group = image.user.split(":")
    if user == "0":
        raise DockerfileError("the image runs as root")
    command = shlex.join([*image.entry_point, *image.command, *settings])
    ask = ASK.replace("HEALTH", shlex.join(image.health)).replace("SERVER", command)
    variables = [f"{name}={value}" for name, value in image.environment.items()]
    setup = {"ROOT": str(image.root), "UID_": user, "GID_": group, "WRITABLE": " ".join(WRITABLE)}
    in_shell = ["/bin/sh", "-c", f"cd {shlex.quote(image.directory)}\n{ask}"]
    _in_namespaces(IN_ROOT + SERVE, [*variables, *in_shell], setup, "--net")


def size_mb(root: Path) -> int:
    """What the tree takes on a disk, in MB."""
    done = subprocess.run(["du", "-sx", "--block-size=1", str(root)], capture_output=True, text=True, check=True)
    return round(int(done.stdout.split()[0]) / 1e6)


def make_base(work: Path, mirror: str, image: str) -> Path:
    """A Debian of the release that `image` names, made once."""
    root = work / "base"
    if not (root / "etc" / "debian_version").is_file() or not (root / "usr" / "bin" / "setpriv").exists():
        release = next(name for start, name in RELEASES.items() if image.startswith(start))
        shutil.rmtree(root, ignore_errors=True)
        subprocess.run(["debootstrap", "--variant=minbase", release, str(root), mirror], check=True)
        shutil.rmtree(root / "var" / "cache" / "apt" / "archives")
    return root


def main() -> None:
    """Ends with status 1 where an image could not be built or did not serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="where roots are made; several GB")
    parser.add_argument("--stage", action="append", choices=list(IMAGES), help="may be repeated (default: all)")
    parser.add_argument("--root", type=Path, metavar="DIR", help="a clean root (default: one that debootstrap makes)")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian", metavar="URL", help="of Debian's packages")
    parser.add_argument("--bind", action="append", default=[], metavar="DIR", help="lent to RUN lines, read-only")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    base_image = read_stages((PROJECT / "deploy" / "Dockerfile").read_text())[1]["BASE"]
    try:
        base = arguments.root or make_base(arguments.work, arguments.mirror, base_image)
        builder = Builder(arguments.work, base, arguments.bind)
        sizes = {}
        for name in arguments.stage or IMAGES:
            image = builder.build(name)
            serve_from(image, IMAGES[name])
            sizes[name] = size_mb(image.root)
            print(f"{name}: served from a read-only tree as {image.user}", flush=True)
    except (DockerfileError, subprocess.CalledProcessError) as error:
        sys.exit(f"prove_dockerfile: {error}")
    print(f"base: {size_mb(base)} MB")
    for name, size in sizes.items():
        print(f"{name}: {size} MB, {size - size_mb(base)} of them above the base")


if __name__ == "__main__":
    main()
