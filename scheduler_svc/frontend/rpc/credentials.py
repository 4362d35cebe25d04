"""Credentials: the files that say who serves, who may call and how much, in force from the start and followed from then
on.

It puts the files together with those who use what is in them, and knows no call.
"""

import asyncio
import logging
from collections.abc import Callable

from pagewire.scheduler_svc.frontend.rpc.auth import Authenticator, read_keys
from pagewire.scheduler_svc.frontend.rpc.followed_files import FollowedFiles
from pagewire.scheduler_svc.frontend.rpc.tenant_limits import OTHERS, TenantUsage, read_limits
from pagewire.scheduler_svc.frontend.rpc.tls import Tls, read_tls
from pagewire.scheduler_svc.launch import FrontendLaunch, TlsFiles

_log = logging.getLogger(__name__)
_MOST_NAMED = 8


class Credentials:
    """Of one frontend."""

    def __init__(self, launch: FrontendLaunch, usage: TenantUsage) -> None:
        """Reads the files. Raises StartupError, OSError."""
        self._usage = usage
        needs_certificate = launch.tls is not None and launch.tls.client_ca is not None
        self.authenticator = Authenticator(launch.admin_tenants, launch.client_identity if needs_certificate else None)
        self.tls = None if launch.tls is None else Tls()
        self._files: list[FollowedFiles] = []
        if launch.api_keys_file is not None:
            path = launch.api_keys_file
            self._files.append(FollowedFiles("API keys", [path], lambda: self._read_keys(path)))
        if launch.tls is not None:
            files = launch.tls
            paths = [files.certificate, files.key, *([] if files.client_ca is None else [files.client_ca])]
            self._files.append(FollowedFiles("TLS certificates", paths, lambda: self._read_tls(files)))

        if launch.tenant_limits_file is not None:
            limits = launch.tenant_limits_file
            self._files.append(FollowedFiles("tenants' limits", [limits], lambda: self._read_limits(limits)))

    async def follow(self) -> None:
        """Read again what changes, until cancelled."""
        await asyncio.gather(*(files.follow() for files in self._files))

    async def reload(self) -> None:
        """Read all of them again now."""
        for files in self._files:
            await files.look(ordered=True)

    def _read_keys(self, path: str) -> Callable[[], None]:
        keys = read_keys(path)
        return lambda: self.authenticator.use_keys(keys)

    def _read_limits(self, path: str) -> Callable[[], None]:
        limits = read_limits(path)

        def use() -> None:
            self._usage.use(limits)
            tenants = self.authenticator.tenants
            if tenants is not None and (strangers := sorted(limits.keys() - tenants - {OTHERS})):
                named = ", ".join(map(repr, strangers[:_MOST_NAMED]))
                _log.warning("%s limits %d tenants that have no key: %s", path, len(strangers), named)

        return use

    def _read_tls(self, files: TlsFiles) -> Callable[[], None]:
        configuration = read_tls(files)
        tls = self.tls
        assert tls is not None
        return lambda: tls.use(configuration, files.client_ca is not None)
