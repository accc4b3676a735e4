"""Runs a server until it is told to stop: the engine first, then HTTP, then both down in the other order."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from step3.server.app import make_app
from step3.server.config import ServerConfig, ServerError
from step3.server.connections import ConnectionLimits, limited
from step3.server.supervisor import Supervisor


class _Server(uvicorn.Server):
    """uvicorn that drains on SIGTERM and SIGINT, and then returns instead of dying of the signal."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for one in signals:
            loop.add_signal_handler(one, self.handle_exit, one, None)
        yield
        for one in signals:
            loop.remove_signal_handler(one)


async def run(config: ServerConfig, on_ready: Callable[[str, Supervisor], None]) -> None:
    """Serves until SIGTERM or SIGINT; running requests are finished first, within `drain_seconds`.

    Args:
        on_ready: called with the server's URL when it takes requests.

    Raises:
        ServerError: the address cannot be had, or the engine does not start.
    """
    # Before the model is loaded: an address that is taken should not cost minutes to find out.
    with _listen(config) as listening:
        supervisor = Supervisor(
            {
                "options": dict(config.engine),
                "max_waiting": config.max_waiting,
                "max_pixels": config.max_pixels,
            }
        )
        try:
            await supervisor.start()
            server = _Server(
                uvicorn.Config(
                    make_app(config, supervisor),
                    lifespan="off",
                    ws="none",
                    log_level="warning",
                    access_log=False,
                    server_header=False,
                    proxy_headers=False,
                    http=limited(
                        ConnectionLimits(head_seconds=config.idle_seconds, write_seconds=config.write_seconds)
                    ),
                    timeout_keep_alive=max(1, round(config.idle_seconds)),
                    timeout_graceful_shutdown=max(1, round(config.drain_seconds)),
                )
            )
            listening.listen(2048)
            on_ready(url(config.host, listening.getsockname()[1]), supervisor)
            await server.serve([listening])
        finally:
            await supervisor.stop()


def url(host: str, port: int) -> str:
    """Where a browser on this machine finds the server."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


def _listen(config: ServerConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # Named TCP, or asyncio would leave Nagle's delay on: 40 ms before the second piece of every answer.
    own = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        own.bind((config.host, config.port))
    except OSError as error:
        own.close()
        reason = error.strerror or error
        raise ServerError(
            f"cannot listen on {config.host} port {config.port}: {reason}; choose another --host or --port"
        ) from None
    return own
