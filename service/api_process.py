"""The API processes: gunicorn's master, and uvicorn in the workers that it forks.

The master gets the listening socket from the supervisor (`server`) and keeps the workers going.
Master and workers end by themselves when their parent is gone. What is answered is the business of
`app`.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import uvicorn
import uvloop
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker
from httptools import HttpParserUpgrade
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.app import create_app

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.config import Config

GRACEFUL_SECONDS = 30
"""How long requests in flight have to be answered when the server stops."""

KEEP_ALIVE_SECONDS = 75
"""How long an idle connection stays open: longer than the 60 s after which load balancers close."""

HEAD_BYTES = 65536
"""Limit of a request's line and headers. A path with a custom id of 255 characters needs 3 KiB."""

ORPHAN_SECONDS = 0.9
"""How long a process whose parent is gone may take to end in order."""

BACKLOG = 2048
"""Connections that may wait to be accepted."""


class Gunicorn(BaseApplication):
    """gunicorn's master, configured by our settings alone: no file, no flags, no variables."""

    def __init__(self, settings: Config, parent: int, descriptor: int) -> None:
        """Take the supervisor's process id, and the descriptor of its listening socket."""
        self._settings = settings
        self._parent = parent
        self._descriptor = descriptor
        super().__init__()

    def load_config(self) -> None:
        """Give gunicorn its settings."""
        values: dict[str, Any] = {
            "bind": f"fd://{self._descriptor}",
            "workers": self._settings.workers,
            "worker_class": ApiProcess,
            "graceful_timeout": GRACEFUL_SECONDS,
            "timeout": 30,
            "loglevel": self._settings.log_level,
            "proc_name": "belong",
            "control_socket_disable": True,
        }
        if os.access("/dev/shm", os.W_OK):  # noqa: S108 - nothing but a heartbeat is kept there
            # On a disk the heartbeat of a worker can wait for other people's writes.
            values["worker_tmp_dir"] = "/dev/shm"  # noqa: S108
        assert self.cfg is not None  # noqa: S101 - made just before this is called
        for name, value in values.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """Make the application; called in each worker."""
        return create_app(self._settings)

    def run(self) -> None:
        """Run the master until it is told to stop, or the parent is gone."""
        _Arbiter(self, self._parent).run()


class _Arbiter(Arbiter):
    """gunicorn's master, which stops when the supervisor is gone."""

    def __init__(self, app: Gunicorn, parent: int) -> None:
        super().__init__(app)
        self._parent = parent

    def wait_for_signals(self, timeout: float = 1.0) -> list[int]:
        if os.getppid() != self._parent:
            return [signal.SIGTERM]
        signals: list[int] = super().wait_for_signals(min(timeout, 0.5))
        return signals


class ApiProcess(Worker):
    """One API process: uvicorn on gunicorn's socket.

    PERF: Falcon's ASGI "hello" on one core, wrk with 32 connections, medians of five alternating
    runs of 5 s: 38,100 requests/s here, 20,200 with gunicorn's own `asgi` worker (uvloop in both).
    """

    def init_signals(self) -> None:
        """Leave signals to the event loop; one that is stuck says where when it is killed."""
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        for number in (signal.SIGUSR1, signal.SIGWINCH):
            signal.signal(number, signal.SIG_IGN)
        faulthandler.enable()

    def run(self) -> None:
        """Serve until told to stop, or until gunicorn's master is gone."""
        api = uvicorn.Config(
            self.wsgi,
            interface="asgi3",
            http=_Protocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # `paging` looks at them, and at the peer that sent them
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACEFUL_SECONDS - 2,
        )
        server = _Server(api, self)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(server.serve([listener.sock for listener in self.sockets]))


class _Server(uvicorn.Server):
    def __init__(self, api: uvicorn.Config, process: ApiProcess) -> None:
        super().__init__(api)
        self._process = process

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._finish)
        loop.add_signal_handler(signal.SIGQUIT, self._hasten)
        yield

    def _finish(self) -> None:
        self.should_exit = True

    def _hasten(self) -> None:
        self.should_exit = self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Look ten times a second whether we are wanted, and tell gunicorn that we live."""
        if counter % 10 == 0:
            self._process.notify()
        if os.getppid() != self._process.ppid and not self.should_exit:
            self.should_exit = True
            # What is in flight has half a second; the port must be free for the next master.
            self.config.timeout_graceful_shutdown = 0.5  # type: ignore[assignment]
            asyncio.get_running_loop().call_later(ORPHAN_SECONDS, os._exit, 1)
        return await super().on_tick(counter)


class _Protocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, mended where anybody who sends requests would notice.

    httptools has no limit on the head of a request; and it takes the body of a request that offers
    another protocol for that protocol's first words, so that Java's HttpClient, which offers HTTP/2
    with its first request, would see its body ignored.
    """

    _head = 0
    _data = b""

    def data_received(self, data: bytes) -> None:
        self._data = data
        super().data_received(data)
        self._data = b""
        if self.cycle is not None and self.cycle.scope is self.scope:
            self._head = 0
            return
        self._head += len(data)
        if self._head > HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(
                b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
                b"content-length: 0\r\nconnection: close\r\n\r\n"
            )
            self.transport.close()

    def on_headers_complete(self) -> None:
        if self.parser.get_http_version() not in {"1.0", "1.1"}:
            raise ValueError("no version of HTTP that we speak")  # uvicorn answers 400
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        # What was sent ahead has nobody to be answered to.
        self.pipeline.clear()
        super().connection_lost(exc)

    def _should_upgrade(self) -> bool:
        # Called when the head is complete, if it offers something: leads to the method below.
        return True

    def handle_websocket_upgrade(self) -> None:
        """Decline the offer: parse the request again as if it had made none."""
        declined = sys.exception()
        if not isinstance(declined, HttpParserUpgrade) or self.scope["method"] == "CONNECT":
            self.send_400_response("Invalid HTTP request received.")
            return
        rest = self._data[declined.args[0] :]
        start = f"{self.scope['method']} {self.url.decode('latin-1')} HTTP/1.1"
        lines = [start.encode("latin-1")]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        super().data_received(b"\r\n".join([*lines, b"", rest]))
