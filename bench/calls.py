"""One request after another over a connection that is kept alive, and samples taken together.

For what no loop of prepared requests can measure: writes whose answers are looked at, steps that
have to take turns. It adds about 20 us to an answer. Loops are the business of `load` and `wrk`.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, TypeVar

import msgspec

from bench.load import histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from hdrh.histogram import HdrHistogram

    from bench.measurement import Sample

Name = TypeVar("Name")

CAN_BE_ANSWERED_SECONDS = 600.0
"""How long a call may take; queries over groups of a million take seconds."""


class Refused(Exception):
    """An answer that a measurement cannot go on from."""


class Answer(NamedTuple):
    """What came back, and how long that took."""

    status: int
    body: bytes
    seconds: float

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    def read(self) -> Any:
        """Decode the body of a success. Anything else is Refused."""
        if not self.is_success:
            raise Refused(f"{self.status} {self.body[:300].decode(errors='replace')}")
        return msgspec.json.decode(self.body)


class Caller:
    """A blocking connection: for one thread at a time. Close when done, or use as a context."""

    def __init__(self, host: str, port: int) -> None:
        """Connect."""
        self._socket = socket.create_connection((host, port), CAN_BE_ANSWERED_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self._socket.close()

    def ask(self, request: bytes) -> Answer:
        """Send a whole request and read the whole answer, which has to say how long it is.

        Raises ConnectionError where the server closed the connection before the end.
        """
        began = time.perf_counter()
        self._socket.sendall(request)
        head, gap, body = self._receive().partition(b"\r\n\r\n")
        while not gap:
            head, gap, body = (head + self._receive()).partition(b"\r\n\r\n")
        left = _length(head) - len(body)
        pieces = [body]
        while left > 0:
            pieces.append(self._receive())
            left -= len(pieces[-1])
        seconds = time.perf_counter() - began
        return Answer(int(head.split(b" ", 2)[1]), b"".join(pieces), seconds)

    def _receive(self) -> bytes:
        piece = self._socket.recv(1 << 18)
        if not piece:
            raise ConnectionResetError("The server closed the connection.")
        return piece


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    if head.startswith((b"HTTP/1.1 204", b"HTTP/1.1 304")):
        return 0
    raise Refused(f"An answer of unknown length: {head[:200].decode(errors='replace')}")


def request(authorization: str, method: str, path: str, body: object = None) -> bytes:
    """Make a whole request; a body that is no bytes is encoded as JSON."""
    content = body if isinstance(body, bytes) else b"" if body is None else _encode(body)
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: {authorization}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


_encode = msgspec.json.encode


def ask_all(host: str, port: int, requests: Sequence[bytes], connections: int) -> list[Answer]:
    """Send requests over some connections, each the next one as soon as it has an answer.

    The answers come in the order of the requests. A connection that breaks gives status 0 for the
    request that it was about, and is made anew for the next one.
    """
    waiting = iter(range(len(requests)))
    answers: list[Answer] = [Answer(0, b"", 0.0)] * len(requests)

    def go() -> None:
        caller: Caller | None = None
        with ExitStack() as open_ones:
            for at in waiting:
                try:
                    caller = caller or open_ones.enter_context(Caller(host, port))
                    answers[at] = caller.ask(requests[at])
                except OSError as ex:
                    answers[at] = Answer(0, str(ex).encode(), 0.0)
                    caller = None

    with ThreadPoolExecutor(connections) as pool:
        for each in [pool.submit(go) for _ in range(connections)]:
            each.result()
    return answers


def latencies(seconds: Iterable[float]) -> HdrHistogram:
    """Make a histogram, in us, of what calls took."""
    return histogram(Counter(round(1e6 * each) for each in seconds))


class Together(Generic[Name]):
    """Steps that are measured at once: who is asked first in a run measures for all of them."""

    def __init__(self, measure: Callable[[], Mapping[Name, Sample]]) -> None:
        """Take what gives a sample for every step, by its name."""
        self._measure = measure
        self._waiting: dict[Name, Sample] = {}

    def part(self, name: Name) -> Callable[[], Sample]:
        """Give the `measure` of one step."""

        def measure() -> Sample:
            if name not in self._waiting:
                self._waiting = dict(self._measure())
            return self._waiting.pop(name)

        return measure
