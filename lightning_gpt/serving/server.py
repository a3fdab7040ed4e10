"""The gateway's process: socket, event loop, signals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator

import uvicorn
import uvloop

from lightning_gpt.serving.app import Application
from lightning_gpt.serving.config import LimitsConfig, ServiceConfig
from lightning_gpt.serving.http_protocol import HttpLimits, guarded_protocol
from lightning_gpt.serving.json_logs import route_library_logs
from lightning_gpt.serving.service import Service

BACKLOG = 4096


class CutOffError(RuntimeError):
    """The service ended before all requests were answered."""


class _Server(uvicorn.Server):
    """Signals are ours: the first drains, the second ends at once."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ValueError: the address is none, or taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ValueError(f"host={host!r} is no address here ({error.strerror}): use 127.0.0.1, or 0.0.0.0") from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ValueError(
            f"port={port} of {host} cannot be used ({error.strerror}): choose another with --port, or end what uses it"
        ) from None
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


async def run(config: ServiceConfig, listener: socket.socket) -> None:
    """Serves until a signal, then drains.

    Raises:
        CutOffError: requests were still under way when the time of the drain was over.
        WorkerStartError: a model cannot be loaded.
    """
    if config.cpus is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, config.cpus)
    service = Service(config)
    route_library_logs(service.log)
    host, port = listener.getsockname()[:2]
    server = _Server(
        uvicorn.Config(
            Application(service),
            http=guarded_protocol(_http_limits(config.limits), service.turned_away, service.shed),
            lifespan="off",
            access_log=False,
            log_config=None,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=int(config.limits.keep_alive_s),
            timeout_graceful_shutdown=int(config.drain_s) + 1,
            backlog=BACKLOG,
        )
    )
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, stop, server)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        loading = asyncio.create_task(service.start())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            loading.cancel()
            return
        await loading
        print(f"serving {', '.join(service.models)} at http://{_shown(host)}:{port}", file=sys.stderr, flush=True)
        await stopping
        service.draining = True
        await asyncio.sleep(config.drain_delay_s)
        server.should_exit = True  # no more connections; those with a request under way are waited for
        if not await service.drain():
            raise CutOffError(f"{service.open} requests were cut off: drain_s={config.drain_s:g} was not enough")
    finally:
        server.should_exit = True
        await serving
        await service.stop()


def _http_limits(limits: LimitsConfig) -> HttpLimits:
    return HttpLimits(
        max_connections=limits.max_connections,
        header_timeout_s=limits.header_timeout_s,
        body_timeout_s=limits.body_timeout_s + 1,  # the application's own refusal, which is counted, comes first
        write_timeout_s=limits.body_timeout_s,
    )


def _on_signal(stop: asyncio.Event, server: uvicorn.Server) -> None:
    if stop.is_set():
        server.force_exit = True
        os._exit(1)
    stop.set()


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def serve(config: ServiceConfig) -> None:
    """Binds, then loads, then serves: a taken port is told before anything is loaded. Raises as `run` and `bind`."""
    listener = bind(config.host, config.port)
    with listener:
        uvloop.run(run(config, listener))
