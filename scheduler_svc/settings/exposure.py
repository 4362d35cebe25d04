"""Exposure: what settings leave open to other machines, and whether anything says who may come in.

An address that other machines reach needs credentials, API keys or client certificates, or the operator's word that it
needs none (`insecure`). It listens on nothing, and knows the addresses as they were written: a host name counts as
reachable, whatever it stands for.
"""

import ipaddress

from pagewire.scheduler_svc.settings.settings import Settings
from pagewire.scheduler_svc.startup_errors import SettingsError


def check_exposure(settings: Settings) -> None:
    """Raises SettingsError for an address that is open to other machines while anyone may come in."""
    if settings.insecure:
        return
    if settings.api_keys_file is None and settings.tls_client_ca is None:
        for name, address in (("listen", settings.listen), ("admin_listen", settings.admin_listen)):
            if address and not is_loopback(address):
                raise SettingsError(
                    f"{name} = {address!r} is open to other machines, and nothing says who may call: give "
                    "--api-keys-file FILE, or --tls-client-ca FILE to let client certificates in alone, or --insecure "
                    "if whoever reaches it may use it"
                )
    if settings.openai is not None and not is_loopback(settings.openai) and settings.api_keys_file is None:
        raise SettingsError(
            f"openai = {settings.openai!r} is open to other machines, and nothing says who may call: give "
            "--api-keys-file FILE, or --insecure if whoever reaches it may use it"
        )
    if settings.metrics_listen is not None and not is_loopback(settings.metrics_listen):
        raise SettingsError(
            f"metrics_listen = {settings.metrics_listen!r} is open to other machines: metrics have neither keys nor "
            "encryption, and whoever reaches it reads tenants' names and what they use; give --insecure if its network "
            "is closed to everybody else"
        )
    for name, address in _open_kv_events(settings):
        raise SettingsError(
            f"{name} = {address!r} is open to other machines: KV events have neither keys nor encryption, and whoever "
            "reaches it reads prompts' token ids; give --insecure if its network is closed to everybody else"
        )


def exposure_warnings(settings: Settings) -> list[str]:
    """What is open to the network without TLS or keys, for the log."""
    found = []
    if not is_loopback(settings.listen):
        missing = [
            word
            for word, value in (("TLS", settings.tls_certificate), ("API keys", settings.api_keys_file))
            if value is None
        ]
        if len(missing) == 2 or (missing == ["API keys"] and settings.tls_client_ca is None):
            found.append(f"listen = {settings.listen!r} is open to other machines, without {' or '.join(missing)}")
        elif missing == ["TLS"]:
            found.append(f"listen = {settings.listen!r} is open to other machines, and API keys travel without TLS")
    if settings.openai is not None and not is_loopback(settings.openai):
        without = "and API keys travel without TLS" if settings.api_keys_file else "without TLS or API keys"
        found.append(f"openai = {settings.openai!r} is open to other machines, {without}")
    if settings.admin_listen and not is_loopback(settings.admin_listen):
        found.append(f"admin_listen = {settings.admin_listen!r} is open to other machines: they can drain this server")
    if settings.distributed_address is not None and not is_loopback(settings.distributed_address):
        found.append(
            f"distributed_address = {settings.distributed_address!r} is open to other machines: torch.distributed has "
            "neither keys nor encryption"
        )
    if settings.metrics_listen is not None and not is_loopback(settings.metrics_listen):
        found.append(
            f"metrics_listen = {settings.metrics_listen!r} is open to other machines: whoever reaches it reads "
            "tenants' names and what they use"
        )
    for name, address in _open_kv_events(settings):
        found.append(f"{name} = {address!r} is open to other machines: whoever reaches it reads prompts' token ids")
    if settings.insecure and found:
        found.append("insecure is set: addresses that are open to other machines need no credentials")
    return found


def is_loopback(address: str) -> bool:
    """Whether only this machine can connect."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _open_kv_events(settings: Settings) -> list[tuple[str, str]]:
    return [
        (name, address)
        for name, address in (("kv_events", settings.kv_events), ("kv_events_replay", settings.kv_events_replay))
        if address is not None and address.startswith("tcp://") and not is_loopback(address.removeprefix("tcp://"))
    ]
