"""Listens: uvicorn, with what it says at the start."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

HEAD_BYTES = 64 << 10
"""Of a request's line and headers."""


class _Announcing(uvicorn.Server):
    def __init__(self, settings: uvicorn.Config, announce: Callable[[str], None]):
        super().__init__(settings)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.config.host, self.servers[0].sockets[0].getsockname()[1]
            self._announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")


@contextmanager
def _quiet_signals() -> Iterator[None]:
    """uvicorn sends itself again what made it end; that is the end of a server, not of a process that failed."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def listen(app: ASGIApp, host: str, port: int, grace_s: int, announce: Callable[[str], None]) -> bool:
    """Serves until a signal.

    Parameters
    ----------
    port : 0 for any that is free.
    grace_s : time that answers have to end after the signal, seconds; then they are cut.
    announce : told the address.

    Returns
    -------
    bool : False when the address cannot be had.
    """
    settings = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=grace_s,
        h11_max_incomplete_event_size=HEAD_BYTES,
        http="h11",
        loop="asyncio",
        ws="none",
    )
    server = _Announcing(settings, announce)
    try:
        with _quiet_signals():
            server.run()
    except SystemExit:  # uvicorn's way to say it
        return False
    return server.started
