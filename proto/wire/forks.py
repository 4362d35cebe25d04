"""Messages between a supervisor and its fork servers, the processes that children are forked from: JSON, one message
per packet of an inherited Unix socket (SOCK_SEQPACKET). End-of-file on it ends the fork server.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from pagewire.wire.codec import Count


class Fork(msgspec.Struct, frozen=True, tag="fork"):
    """To the fork server: make a child. The packet carries one descriptor, the child's end of its lifeline."""

    launch: Annotated[str, Meta(max_length=4096)]
    """Path of the launch file."""


class Reap(msgspec.Struct, frozen=True, tag="reap"):
    """To the fork server: nobody sends that process a signal any more, so its number may become another's."""

    pid: Count


ToForkServer = Fork | Reap


class Forked(msgspec.Struct, frozen=True, tag="forked"):
    """The answer to a `Fork`, in the order of asking. The process leads a process group."""

    pid: Count


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """A child ended; it is waited for once it is reaped. A negative status is a signal's number."""

    pid: Count
    status: int


FromForkServer = Forked | Ended
