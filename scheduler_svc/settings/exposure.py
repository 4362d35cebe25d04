"""What a server's settings leave open to other machines, for a warning when it starts."""

from pagewire.scheduler_svc.settings.addresses import is_loopback
from pagewire.scheduler_svc.settings.settings import Settings


def exposure_warnings(settings: Settings) -> list[str]:
    """What is open to the network without TLS or keys."""
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
    if settings.admin_listen and not is_loopback(settings.admin_listen):
        found.append(f"admin_listen = {settings.admin_listen!r} is open to other machines: they can drain this server")
    if settings.distributed_address is not None and not is_loopback(settings.distributed_address):
        found.append(
            f"distributed_address = {settings.distributed_address!r} is open to other machines: torch.distributed has "
            "neither keys nor encryption"
        )
    return found
