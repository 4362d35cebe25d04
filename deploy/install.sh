#!/usr/bin/env bash
# Installs a server, or a worker for one, as a systemd service, and takes it away again.
#
#   bash deploy/install.sh [--worker] [--with NAME,…] [--extras NAME,…] [--prefix DIR] [--root DIR] [--units-only]
#   bash deploy/install.sh --uninstall [--purge] [--prefix DIR] [--root DIR]
#
#   --worker      pagewire-worker@.service, a rank for a server on another host, instead of pagewire.service
#   --with        drop-ins of deploy/systemd: gpu, curve, api-keys, tls, client-ca (default: those there; '': none)
#   --extras      of the package (default: all; with gpu: all,cuda)
#   --prefix      the virtual environment (default /opt/pagewire)
#   --root        where the units and /etc/pagewire go (default /); with another, systemd is not told
#   --units-only  units and settings, and no environment
#   --purge       settings, keys and caches too, which --uninstall alone leaves
#
# Run again it replaces packages, units and its own drop-ins, and leaves settings and others' drop-ins as they are. It
# starts nothing.
set -euo pipefail
# Whoever has a stricter one: the service's user reads packages and settings; what is secret has a mode of its own.
umask 022

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
prefix=/opt/pagewire root=/ extras='' drop_ins='' unit=pagewire.service
uninstall='' purge='' units_only='' chosen=''

fail() {
  echo "install: $*" >&2
  exit 2
}

while [ $# -gt 0 ]; do
  case $1 in
    --worker) unit=pagewire-worker@.service ;;
    --uninstall) uninstall=yes ;;
    --purge) purge=yes ;;
    --units-only) units_only=yes ;;
    --with | --extras | --prefix | --root)
      [ $# -ge 2 ] || fail "$1 needs a value"
      case $1 in
        --with) drop_ins=${2//,/ } chosen=yes ;;
        --extras) extras=$2 ;;
        --prefix) prefix=$2 ;;
        --root) root=$2 ;;
      esac
      shift
      ;;
    *) fail "unknown argument $1; the head of this file explains them" ;;
  esac
  shift
done
[[ $prefix == /* ]] || fail "--prefix $prefix must be absolute"
[[ $prefix != *[[:space:]%]* ]] || fail "--prefix $prefix must have neither spaces nor %"
[ -z "$purge" ] || [ -n "$uninstall" ] || fail "--purge is for --uninstall"
root=${root%/}
units=$root/etc/systemd/system
settings=$root/etc/pagewire

# The drop-ins of a unit that are ours: any other is the operator's.
ours() {
  case $1 in
    pagewire.service) echo gpu curve api-keys tls client-ca ;;
    *) echo gpu ;;
  esac
}

for name in $drop_ins; do
  case " $(ours "$unit") " in
    *" $name "*) ;;
    *) fail "--with $name: $unit has no such drop-in" ;;
  esac
done

# Only systemd of this machine, and only where it runs.
systemd() {
  if [ -z "$root" ] && [ -d /run/systemd/system ]; then
    systemctl "$@"
  fi
}

if [ -n "$uninstall" ]; then
  for file in "$units"/pagewire.service "$units"/pagewire-worker@.service; do
    [ -e "$file" ] || continue
    name=$(basename "$file")
    case $name in
      *@*)
        # stop takes patterns, disable does not.
        systemd stop "${name/@./@*.}" || true
        rm -f "$units"/*.wants/"${name%.service}"*.service
        ;;
      *) systemd disable --now "$name" || true ;;
    esac
    rm -f "$file"
    for drop_in in $(ours "$name"); do
      rm -f "$file.d/$drop_in.conf"
    done
    # What is left in it is the operator's.
    rmdir "$file.d" 2>/dev/null || true
  done
  systemd daemon-reload
  # A folder of that name which is no environment of ours is somebody else's.
  if [ -x "$prefix/bin/pagewire" ] && [ -f "$prefix/pyvenv.cfg" ]; then
    rm -rf "$prefix"
  fi
  if [ -n "$purge" ]; then
    rm -rf "$settings" "$root/var/cache/pagewire" "$root/var/cache/private/pagewire"
  fi
  echo "uninstalled${purge:+, with settings, keys and caches}"
  exit
fi

if [ -z "$chosen" ]; then
  for name in $(ours "$unit"); do
    [ ! -e "$units/$unit.d/$name.conf" ] || drop_ins+="${drop_ins:+ }$name"
  done
fi

if [ -z "$units_only" ]; then
  python=''
  for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      python=$candidate
      break
    fi
  done
  [ -n "$python" ] || fail "needs Python 3.11 or newer on the PATH, or named by PYTHON"
  if [ -z "$extras" ]; then
    case " $drop_ins " in
      *" gpu "*) extras=all,cuda ;;
      *) extras=all ;;
    esac
  fi
  "$python" -m venv "$prefix"
  # Built from a copy, because a build leaves files behind in its tree.
  copy=$(mktemp -d)
  trap 'rm -rf "$copy"' EXIT
  (cd "$project" && cp -R pyproject.toml README.md proto scheduler_svc worker client "$copy" &&
    mkdir "$copy/deploy" && cp deploy/LICENSE "$copy/deploy")
  pip() {
    "$prefix/bin/python" -m pip --quiet --disable-pip-version-check "$@"
  }
  # The package anew, whatever its version; of what it needs what is missing or too old.
  pip wheel --no-deps --wheel-dir "$copy/wheels" "$copy"
  wheel=$(echo "$copy"/wheels/*.whl)
  pip install --force-reinstall --no-deps "$wheel"
  pip install -c "$project/deploy/constraints.txt" "$wheel[$extras]"
fi

install -d -m 0755 "$units" "$settings"
install -d -m 0700 "$settings/curve" "$settings/tls"
if [ ! -e "$settings/pagewire.toml" ]; then
  cat >"$settings/pagewire.toml" <<'TOML'
# Settings of Pagewire; `pagewire serve --help` explains each, `pagewire serve --print-config` shows them all.
model = "smollm2-135m"
TOML
  chmod 0644 "$settings/pagewire.toml"
fi
for name in $(ours "$unit"); do
  rm -f "$units/$unit.d/$name.conf"
done
# The program is where --prefix has put it.
sed "s|/opt/pagewire/|$prefix/|g" "$project/deploy/systemd/$unit" >"$units/$unit"
for name in $drop_ins; do
  install -D -m 0644 "$project/deploy/systemd/$name.conf" "$units/$unit.d/$name.conf"
done
systemd daemon-reload

cat <<EOF2
installed $units/$unit${drop_ins:+ with $drop_ins}
settings: $settings/pagewire.toml
next: systemctl enable --now ${unit/@./@1.}
EOF2
