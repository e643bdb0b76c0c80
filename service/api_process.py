"""The API processes: gunicorn's master, and uvicorn in the workers that it forks.

The master gets the listening socket from the supervisor (`server`) and keeps the workers going.
Master and workers end by themselves when their parent is gone. What is answered is the business of
`app`.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import logging
import os
import signal
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import uvicorn
import uvloop
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker
from httptools import HttpParserUpgrade
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.app import create_app
from service.counters import Counters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from service.config import Config
    from service.shortcuts import Shortcut, Shortcuts

GRACEFUL_SECONDS = 30
"""How long requests in flight have to be answered when the server stops."""

KEEP_ALIVE_SECONDS = 75
"""How long an idle connection stays open: longer than the 60 s after which load balancers close."""

HEAD_SECONDS = 10
"""How long the line and headers of a request may take from their first byte to their last."""

BODY_SECONDS = 30
"""How long a body may stand still while we wait for the rest of it."""

HURRY_SECONDS = 5
"""The same while the server stops."""

HEAD_BYTES = 65536
"""Limit of a request's line and headers. A path with a custom id of 255 characters needs 3 KiB."""

TIMED_OUT = HTTPStatus.REQUEST_TIMEOUT
TOO_LARGE = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE

ORPHAN_SECONDS = 0.9
"""How long a process whose parent is gone may take to end in order."""

STALLED_SECONDS = 30.0
"""How long a client may read nothing of an answer that is waiting for it."""

BACKLOG = 2048
"""Connections that may wait to be accepted."""

_LAST = b"\r\nconnection: close\r\n\r\n"


log = logging.getLogger(__name__)


class Gunicorn(BaseApplication):
    """gunicorn's master, configured by our settings alone: no file, no flags, no variables."""

    def __init__(self, settings: Config, parent: int, metrics: Path, descriptor: int) -> None:
        """Take the supervisor's process id, its directory and the descriptor of its socket.

        In the directory `metrics` each worker writes down what it has counted.
        """
        self._settings = settings
        self._parent = parent
        self._metrics = metrics
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
        return create_app(self._settings, counters=Counters("api", self._metrics))

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
        # PERF: what is loaded by now stays; to look at it again would make each full collection
        # hold the event loop up for 12 ms.
        gc.collect()
        gc.freeze()
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
    with its first request, would see its body ignored. And uvicorn waits for ever for the rest of a
    request: here one that stands still is answered with 408.

    Hot requests take a shortcut: they are answered by `shortcuts`, one at a time, while nothing
    else is under way on the connection. What comes meanwhile waits.

    What is refused here, before there is a request, has no request id.
    """

    _head = 0
    _data = b""
    _heard = 0.0
    _patience: float = BODY_SECONDS
    _rest: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None
    _running: RequestResponseCycle | None = None
    _shortcut: Shortcut | None = None
    _later = b""
    _answered_at = 0.0
    _leaving = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._shortcuts: Shortcuts | None = self.app.shortcuts
        # As after an answer: who asks nothing at all is not waited for any longer than that.
        self._stay()

    def data_received(self, data: bytes) -> None:
        if self._shortcut is not None:
            self._later += data
            self.flow.pause_reading()
            return
        shortcuts, cycle = self._shortcuts, self.cycle
        if (
            shortcuts is not None
            and not self._head
            and (cycle is None or (cycle.response_complete and not cycle.more_body))
            and not self.flow.write_paused
        ):
            self._shortcut = shortcuts.take(self, data)
            if self._shortcut is not None:
                return
        self._parse(data)

    def answered(self, shortcut: Shortcut, answer: bytes | None) -> None:
        """Send what a shortcut led to, and go on; None: its request goes the ordinary way."""
        self._shortcut = None
        if self.transport.is_closing():
            return
        if answer is None:
            self._parse(shortcut.request)
        elif self._leaving:
            self.transport.write(answer.replace(b"\r\n\r\n", _LAST, 1))
            self.transport.close()
            return
        else:
            self.transport.write(answer)
            self._answered_at = self.loop.time()
        if self._leaving:
            self.shutdown()
        elif self._later:
            later, self._later = self._later, b""
            self.flow.resume_reading()
            self.data_received(later)

    def abort(self) -> None:
        """Drop the client."""
        self.transport.abort()

    def _parse(self, data: bytes) -> None:
        before = self.cycle
        self._data = data
        super().data_received(data)
        self._data = b""
        cycle = self.cycle
        if cycle is None and self.scope is None:
            # Empty lines before the first request: it has not begun.
            self._stay()
            return
        if cycle is None or cycle.scope is not self.scope:
            if not self._head or cycle is not before:
                self._head = 0
                self._wait_for_rest(HEAD_SECONDS, self._refuse, TIMED_OUT)
            # What came before the head in the same piece was sent ahead, and is none of it.
            self._head += len(data) if cycle is before else 1
            if self._head > HEAD_BYTES:
                self._refuse(TOO_LARGE)
            return
        if self._head or not cycle.more_body:
            self._head = 0
            self._stop_waiting()
        if cycle.more_body:
            self._heard = self.loop.time()
            if self._rest is None:
                self._wait_for_rest(self._patience, self._check_body, cycle)
        elif cycle.response_complete:
            self._stay()

    def _stay(self) -> None:
        """Wait for the next request, for which anything that came has ended the waiting."""
        if self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _wait_for_rest(self, seconds: float, then: Callable[..., None], *given: Any) -> None:
        self._stop_waiting()
        self._rest = self.loop.call_later(seconds, then, *given)

    def _stop_waiting(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None

    def _check_body(self, cycle: RequestResponseCycle) -> None:
        """See whether a body moves on; one timer for all of it, not one for each piece."""
        self._rest = None
        if cycle is not self.cycle or not cycle.more_body or self.transport.is_closing():
            return
        if self.flow.read_paused or cycle.waiting_for_100_continue:
            # It is held up by us, who have not asked for more yet.
            self._heard = self.loop.time()
        left = self._patience - (self.loop.time() - self._heard)
        if left > 0:
            self._wait_for_rest(left, self._check_body, cycle)
            return
        cycle.disconnected = True
        cycle.message_event.set()
        if not cycle.response_started:
            self._answer(TIMED_OUT, self.app.refused_within(cycle.scope, TIMED_OUT))
        self.transport.close()

    def _refuse(self, status: HTTPStatus) -> None:
        """Answer before there is a request, and close."""
        if not self.transport.is_closing():
            self._answer(status)
            self.transport.close()
            self.app.refused(status, self.client)

    def _answer(self, status: HTTPStatus, *headers: bytes) -> None:
        lines = [b"HTTP/1.1 %d %b" % (status, status.phrase.encode()), *headers]
        lines += [b"content-length: 0", b"connection: close", b"", b""]
        self.transport.write(b"\r\n".join(lines))

    def send_400_response(self, msg: str) -> None:
        super().send_400_response(msg)
        self.app.refused(HTTPStatus.BAD_REQUEST, self.client)

    def timeout_keep_alive_handler(self) -> None:
        # PERF: 1 us: a timer for every answer of a shortcut.
        left = self._answered_at + self.timeout_keep_alive - self.loop.time()
        if self._shortcut is None and left <= 0:
            super().timeout_keep_alive_handler()
            return
        self.timeout_keep_alive_task = self.loop.call_later(
            max(left, 1.0), self.timeout_keep_alive_handler
        )

    def shutdown(self) -> None:
        if self._shortcut is not None:
            self._leaving = True
            return
        super().shutdown()
        if self._rest is not None and self.cycle is not None and self.cycle.more_body:
            self._patience = HURRY_SECONDS
            self._wait_for_rest(0, self._check_body, self.cycle)

    def on_headers_complete(self) -> None:
        if self.parser.get_http_version() not in {"1.0", "1.1"}:
            raise ValueError("no version of HTTP that we speak")  # uvicorn answers 400
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unwatch()

    def _watch(self, unsent: int) -> None:
        self._stall = self.loop.call_later(STALLED_SECONDS, self._look, unsent)

    def _unwatch(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _look(self, unsent: int) -> None:
        """Drop a client that has read nothing since, while it is owed more than buffers hold."""
        left = self.transport.get_write_buffer_size()
        if left < unsent:
            self._watch(left)
            return
        said = "%s: the client has read nothing of its answer for %g s and is dropped"
        scope = self.scope
        what = "a hot request" if scope is None else f"{scope['method']} {scope['path']}"
        log.warning(said, what, STALLED_SECONDS)
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        self._stop_waiting()
        self._unset_keepalive_if_required()
        # What was sent ahead has nobody to be answered to; what is being answered is not the
        # last that came, which is all that uvicorn tells.
        self.pipeline.clear()
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()
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
