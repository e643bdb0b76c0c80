"""What is noted of every request: its id, its count, how long it took, and its line in the log.

The application object that `app` makes is a `RecordingApp`: it gives each request an id, which its
answer carries, and notes the request when its answer is complete, be it streamed or an error.
Counting is plain arithmetic on numbers of this process; `counters` puts the processes together.

PERF: 4 to 5 us of the 62 us of CPU that a check of one pair takes in this process (least of 150
batches of 320 requests through protocol, application and store); a line of the log 7 to 10 more.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

import falcon.asgi
import msgspec

from service.counters import Counters, key, timed
from service.endpoint import Request
from service.faces import failure_body, stopped_body
from service.request_log import RequestLog, stamp

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from service.counters import Snapshot
    from service.shortcuts import Shortcuts

NO_ROUTE = "(none)"
"""The route of a path that there is not: the label must not hold what a client makes up."""
NO_METHOD = "(other)"

_METHODS = frozenset(falcon.HTTP_METHODS)
_FAILED = 400
_UNANSWERED = 0
_CLOSING = ((b"retry-after", b"1"), (b"connection", b"close"))
log = logging.getLogger(__name__)


class Answered(NamedTuple):
    """What every line of the log says."""

    request_id: bytes
    method: str
    template: str | None
    """The route; None where there is none."""
    path: bytes
    status: int
    elapsed_ns: int


class Note:
    """What is noted of one request on its way."""

    __slots__ = ("_send", "body", "headers", "req", "request_id", "status")

    def __init__(self, request_id: bytes, send: Callable[[Any], Awaitable[None]]) -> None:
        """Begin, with an id for the case that the request brings none."""
        self._send = send
        self.request_id = request_id
        self.req: Request | None = None
        self.status = _UNANSWERED
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""

    def send(self, message: dict[str, Any]) -> Awaitable[None]:
        """Pass on a piece of the answer: the id goes with its head."""
        if self.status == _UNANSWERED:
            self.status = message["status"]
            self.headers = message["headers"]
            self.headers.append((b"x-request-id", self.request_id))
        elif self.status >= _FAILED:
            self.body = message.get("body", b"")
        return self._send(message)

    def let_go(self) -> None:
        """Forget who made the note, when all is answered.

        PERF: note, request and scope would be a cycle, and note, sender and scope another: 12,800
        checks then ran the collector 201 times, and so 21 times.
        """
        self.req = None
        del self._send

    async def answer(
        self, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]] = ()
    ) -> None:
        """Answer with a JSON body, where nothing has been answered yet."""
        head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        head += headers
        await self.send({"type": "http.response.start", "status": status, "headers": head})
        await self.send({"type": "http.response.body", "body": body})


class Route:
    """What was counted of one method of one route: answers by status, and how long they took."""

    __slots__ = ("buckets", "method", "nanoseconds", "statuses", "template")

    def __init__(self, method: str, template: str | None) -> None:
        """Begin with nothing."""
        self.method = method
        self.template = template
        self.statuses: dict[int, int] = {}
        self.buckets = [0] * 64
        self.nanoseconds = 0

    def note(self, status: int, elapsed_ns: int) -> None:
        """Count an answer."""
        statuses = self.statuses
        statuses[status] = statuses.get(status, 0) + 1
        # PERF: `counters.bucket_of`, which costs as much to call as all of this.
        self.buckets[(elapsed_ns // 100_000).bit_length()] += 1
        self.nanoseconds += elapsed_ns


class RecordingApp(falcon.asgi.App[Request, falcon.asgi.Response]):
    """Falcon's application object, which notes what it answered."""

    def __init__(self, counters: Counters, request_log: str) -> None:
        """Take what is counted in, and which requests are logged: `all`, `errors` or `off`."""
        super().__init__(request_type=Request)
        self.counters = counters
        self.log = RequestLog()
        self._answer: Callable[..., Awaitable[None]] = super().__call__
        self._logged_from = {"all": 0, "errors": _FAILED, "off": 1000}[request_log]
        self.in_flight = 0
        """Requests that wait for their answer now."""
        self._routes: dict[tuple[str, str | None], Route] = {}
        # Ids that no other process makes: a random beginning (not at import, before the processes
        # part), then counted up.
        beginning = secrets.token_hex(8).encode()
        self.ids = map((beginning + b"-%x").__mod__, itertools.count(1))
        self.shortcuts: Shortcuts | None = None
        """Where the hottest requests are answered."""
        counters.sources.append(self._tell)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:  # type: ignore[override]
        """Answer a request, and note it."""
        if scope["type"] != "http":
            await self._answer(scope, receive, send)
            return
        began = time.perf_counter_ns()
        note = scope["belong.note"] = Note(next(self.ids), send)
        self.in_flight += 1
        try:
            await self._answer(scope, receive, note.send)
        except asyncio.CancelledError:
            # uvicorn ends what is in flight when the time for that is over at a stop.
            path = scope["path"]
            log.warning("%s %s was cut off by the stop", scope["method"], path)
            if not note.status:
                body = stopped_body(path)
                await note.answer(HTTPStatus.SERVICE_UNAVAILABLE, body, _CLOSING)
        except Exception as error:
            if note.status:
                raise
            # Falcon could not even make a request of it, or not write what was to be answered.
            await self._answer_failure(scope, note, error)
        finally:
            self.in_flight -= 1
            if note.status:
                elapsed_ns = time.perf_counter_ns() - began
                template = None if note.req is None else note.req.uri_template
                of = (scope["method"], template)
                route = self._routes.get(of) or self.route(*of)
                route.note(note.status, elapsed_ns)
                if note.status >= self._logged_from:
                    self._log(scope, note, elapsed_ns)
            note.let_go()

    def refused(self, status: int, client: tuple[str, int] | None) -> None:
        """Note what was answered before there was a request: it was none, or did not come."""
        self.counters.count("belong_http_unreadable_total", str(status))
        if status >= self._logged_from:
            line: dict[str, object] = {"time": stamp(time.time()), "status": status}
            if client is not None:
                line["remote"] = client[0]
            self.log.write(line)

    @staticmethod
    def refused_within(scope: Mapping[str, Any], status: int) -> bytes:
        """Note that a request got this answer from the server, whatever we answer yet.

        Gives the header that the answer has to carry.
        """
        note: Note = scope["belong.note"]
        note.status = status
        return b"x-request-id: " + note.request_id

    async def _answer_failure(self, scope: dict[str, Any], note: Note, error: Exception) -> None:
        request_id = note.request_id.decode()
        log.error("%s failed (request id %s)", scope["method"], request_id, exc_info=error)
        body = failure_body(scope["path"], request_id)
        await note.answer(HTTPStatus.INTERNAL_SERVER_ERROR, body)

    def route(self, method: str, template: str | None) -> Route:
        """Give what is counted of a method of a route."""
        if method not in _METHODS:
            # What a client makes up is not remembered.
            method = NO_METHOD
        return self._routes.setdefault((method, template), Route(method, template))

    def logs(self, status: int) -> bool:
        """Whether there is a line in the log of an answer with this status."""
        return status >= self._logged_from

    def write_line(self, answered: Answered, line: dict[str, object]) -> None:
        """Write the line of an answer; `line` holds what else is known of the request."""
        known: dict[str, object] = {
            "time": stamp(time.time()),
            "request_id": answered.request_id.decode(),
            "method": answered.method,
            "route": answered.template or NO_ROUTE,
            "path": answered.path.decode("latin-1"),
            "status": answered.status,
            "duration_ms": answered.elapsed_ns // 1000 / 1000,
        }
        self.log.write(known | line)

    def _log(self, scope: dict[str, Any], note: Note, elapsed_ns: int) -> None:
        req = note.req
        path = scope.get("raw_path") or scope["path"].encode()
        template = None if req is None else req.uri_template
        method = scope["method"]
        line: dict[str, object] = {}
        if (length := dict(note.headers).get(b"content-length")) is not None:
            line["bytes"] = int(length)
        if req is not None:
            line["remote"] = req.remote_addr
            if req.admitted is not None:
                line["application"], line["caller"] = req.admitted
        if note.status >= _FAILED and note.body.startswith(b"{"):
            line["error"] = msgspec.Raw(note.body)
        answered = Answered(note.request_id, method, template, path, note.status, elapsed_ns)
        self.write_line(answered, line)

    def _tell(self, to: Snapshot) -> None:
        """Write what was counted into a snapshot."""
        to.gauges["belong_http_requests_in_flight"] = self.in_flight
        to.counters["belong_request_log_dropped_total"] = self.log.dropped
        for (method, template), route in self._routes.items():
            if not route.statuses:
                continue
            labels = (method, template or NO_ROUTE)
            for status, answered in route.statuses.items():
                name = key("belong_http_requests_total", (*labels, str(status)))
                to.counters[name] = answered
            name = key("belong_http_request_duration_seconds", labels)
            to.histograms[name] = timed(route.buckets, route.nanoseconds)
