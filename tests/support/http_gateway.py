"""A gateway in a thread of this process, over HTTP."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from pagewire.client import AsyncClient
from pagewire.client.gateway.app import Gateway
from pagewire.client.transport import Transport


@contextmanager
def gateway(target: str, admin: str = "") -> Iterator[str]:
    """One in front of this service, which shows the engine where it is told the admin address; its address."""
    made = Gateway(
        lambda key: AsyncClient(target, api_key=key),
        (lambda key: Transport(target=admin, api_key=key)) if admin else None,
    )
    config = uvicorn.Config(made.application(), port=0, log_level="warning", access_log=False)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        made.end_watching()
        server.should_exit = True
        thread.join(20)
