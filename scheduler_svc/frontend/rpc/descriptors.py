"""Descriptors: how many this process may have open, and so how many connections it can take.

A process without a free descriptor can neither take a connection nor start a helper; what its own work needs is set
apart, so that callers cannot bring it there.
"""

import logging
import resource

_log = logging.getLogger(__name__)

_WANTED = 1 << 20
"""Where there is no hard limit: none is needed either, and some libraries walk through all that there may be."""
_OWN = 128
"""Listeners, the engine, helper processes and their pipes."""
ADMIN_CONNECTIONS = 64
_LEAST_CONNECTIONS = 16


def raise_descriptor_limit() -> int:
    """Raise the soft limit as far as the hard one allows; returns what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED if hard == resource.RLIM_INFINITY else min(hard, _WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return _WANTED if soft == resource.RLIM_INFINITY else soft


def connections_within(max_connections: int, max_descriptors: int) -> int:
    """How many connections the public listener may take of those that it was told."""
    room = max(_LEAST_CONNECTIONS, max_descriptors - _OWN - ADMIN_CONNECTIONS)
    if room < max_connections:
        _log.warning(
            "at most %d connections are taken, and not max_connections = %d: this process may have %d descriptors "
            "(ulimit -Hn, LimitNOFILE)",
            room,
            max_connections,
            max_descriptors,
        )
    return min(room, max_connections)
