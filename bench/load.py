"""Load from a process of its own: closed and open loops over HTTP/1.1 connections kept alive.

This owns what a latency is. In a closed loop every connection sends its next request when it has
the answer to its last one; that finds the peak. In an open loop request i is due at `start +
i / rate`, whatever happened to the others, and its latency counts from there: while a server
stalls, requests go on becoming due, wait for a free connection, and their waiting shows. Requests
are encoded before; each connection has one on its way at a time (nothing is pipelined).

Requests are sent in turn, again and again. What is to be new each time has `NEW` in it, where a
number is written at sending that no other has.

An error is an answer that is not 2xx, a connection that broke under a request or could not be made,
or a request without an answer `GRACE` seconds after the end. Latencies are those of 2xx answers:
to refuse is quick. To them comes what never was answered, with the time that it had waited. What
was due and had not left when the time was over is *unsent*, and counts with its waiting, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import itertools
import math
import os
import subprocess
import sys
import time
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec
import uvloop
from hdrh.histogram import HdrHistogram
from httptools import HttpParserError, HttpResponseParser

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
GRACE = 5.0
"""Seconds for which answers are waited for after the end."""
RETRY = 0.05
"""Seconds until a connection that could not be made is tried again."""
FINEST = 100e-6
"""Seconds between two looks at what is due: never less, so that looking stays cheap."""
HIGHEST = 3_600_000_000
"""The longest latency that a histogram can hold, in us."""
TFD_TIMER_ABSTIME = 1
NEW = "5eedc0ffee5e"
"""What a request has once at most: the last digits of a UUID, so that it is one unchanged, too."""
LOADS = itertools.count(1)
"""Numbers of the loads that one bench makes."""


class Job(msgspec.Struct):
    """What is to be sent where: `rate` in requests/s makes an open loop, None a closed one."""

    host: str
    port: int
    requests: list[bytes]
    connections: int
    seconds: float
    """Without the warm-up."""
    warm_up: float
    rate: float | None = None
    number: str = ""
    """What begins the numbers in the place of `NEW`, `numbered` gives it."""


class Outcome(msgspec.Struct):
    """What came of it."""

    answered: int
    """2xx answers after the warm-up."""
    seconds: float
    """The time in which they came."""
    sent: int
    """Everything that left, warm-up included."""
    errors: int
    unsent: int
    latencies: dict[int, int]
    """How often each latency was, in us, after the warm-up."""
    lasted: float
    """The time in which that left, and in which the client took its processor time."""
    client_seconds: float
    """Processor time of the client: near `lasted`, it is the client that was measured."""
    example: str = ""
    """What the first error was."""

    def histogram(self) -> HdrHistogram:
        """Give the latencies as a histogram of three digits."""
        return histogram(self.latencies)


def histogram(latencies: dict[int, int]) -> HdrHistogram:
    """Make a histogram of three digits of counts by us."""
    made = HdrHistogram(1, HIGHEST, 3)
    for latency, many in latencies.items():
        made.record_value(min(max(latency, 1), HIGHEST), many)
    return made


def numbered(job: Job) -> Job:
    """Give a job whose requests have other numbers than those of all others of this process.

    Of the twelve digits four are the number of the load, and eight count what it sends.
    """
    return msgspec.structs.replace(job, number=f"{next(LOADS) % 0x10000:04x}")


def run(job: Job) -> Outcome:
    """Make the load from a process of its own, and wait for it.

    Raises:
        subprocess.CalledProcessError: the client itself failed; it said why on stderr.
    """
    done = subprocess.run(
        [sys.executable, "-m", "bench.load"],
        cwd=ROOT,
        input=msgspec.msgpack.encode(numbered(job)),
        stdout=subprocess.PIPE,
        check=True,
        # Ctrl-C is for the bench, which then ends this.
        start_new_session=True,
    )
    return msgspec.msgpack.decode(done.stdout, type=Outcome)


class _Loop:
    """What the connections of a job share: the requests, the clock and what is noted."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.requests = job.requests
        self.many = len(job.requests)
        self.fresh = {
            at: (head + job.number.encode(), tail)
            for at, each in enumerate(job.requests)
            for head, mark, tail in [each.partition(NEW.encode())]
            if mark
        }
        self.took: list[float] = []
        self.sent = 0
        self.answered = 0
        self.errors = 0
        self.example = ""
        self.over = False
        self.client_seconds = 0.0
        self.lasted = 0.0
        self.quiet = asyncio.Event()
        self.began = 0.0
        self.counted_from = 0.0
        self.connections: set[_Connection] = set()
        self.making: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Make all connections before the clock runs."""
        for _ in range(self.job.connections):
            await self.connect()

    def start(self) -> None:
        """Let the clock run."""
        self.client_seconds = time.process_time()
        self.began = time.perf_counter()
        self.counted_from = self.began + self.job.warm_up

    def next(self) -> bytes:
        """Give what is to be sent next, and count it."""
        at = self.sent % self.many
        self.sent += 1
        if at in self.fresh:
            head, tail = self.fresh[at]
            return b"%b%08x%b" % (head, self.sent, tail)
        return self.requests[at]

    async def connect(self) -> None:
        """Make a connection, trying until there is one or the time is over."""
        loop = asyncio.get_running_loop()
        while not self.over:
            try:
                await loop.create_connection(
                    lambda: _Connection(self), self.job.host, self.job.port
                )
            except OSError as error:
                self.fail(f"no connection: {error}")
                if not self.began:
                    raise
                await asyncio.sleep(RETRY)
            else:
                return

    def again(self) -> None:
        """Make a connection in the place of one that is gone."""
        if not self.over:
            task = asyncio.get_running_loop().create_task(self.connect())
            self.making.add(task)
            task.add_done_callback(self.making.discard)

    def fail(self, why: str) -> None:
        """Count an error."""
        self.errors += 1
        self.example = self.example or why

    def done(self, began: float, now: float, status: int, last: bytes) -> None:
        """Note an answer; `last` is what was read of it last."""
        if not 200 <= status < 300:
            self.fail(f"status {status}: {last[-200:].decode(errors='replace')}")
        else:
            if now >= self.counted_from and not self.over:
                self.answered += 1
            if began >= self.counted_from:
                self.took.append(now - began)
        if self.over:
            self.look_whether_quiet()

    def look_whether_quiet(self) -> None:
        """Tell who waits for the last answer that it has come."""
        if not any(each.since for each in self.connections):
            self.quiet.set()

    def idle(self, connection: _Connection, now: float) -> None:
        """Give a connection that is free its next request, if there is one for it."""
        raise NotImplementedError

    async def run(self) -> Outcome:
        """Run it from the first request to the last answer."""
        raise NotImplementedError

    async def end(self) -> None:
        """Wait for the answers to what is on its way, and count what has none."""
        self.over = True
        self.client_seconds = time.process_time() - self.client_seconds
        self.lasted = time.perf_counter() - self.began
        if any(each.since for each in self.connections):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.quiet.wait(), GRACE)
        now = time.perf_counter()
        for each in list(self.connections):
            if each.since:
                self.fail(f"no answer in {now - each.since:.1f} s")
                self.took.append(now - each.since)
                each.since = 0.0
            each.transport.abort()
        for task in self.making:
            task.cancel()

    def outcome(self, seconds: float, unsent: int = 0) -> Outcome:
        """Put together what was noted."""
        return Outcome(
            answered=self.answered,
            seconds=seconds,
            sent=self.sent,
            errors=self.errors,
            unsent=unsent,
            latencies=dict(Counter([round(1e6 * each) for each in self.took])),
            lasted=self.lasted,
            client_seconds=self.client_seconds,
            example=self.example,
        )


class _Closed(_Loop):
    """Every connection sends as soon as it has its answer."""

    def idle(self, connection: _Connection, now: float) -> None:
        if self.began and not self.over:
            connection.send(self.next(), now)

    async def run(self) -> Outcome:
        await self.open()
        self.start()
        for connection in list(self.connections):
            self.idle(connection, time.perf_counter())
        await asyncio.sleep(self.job.warm_up + self.job.seconds)
        seconds = time.perf_counter() - self.counted_from
        await self.end()
        return self.outcome(seconds)


class _Open(_Loop):
    """Requests leave when they are due, and wait when no connection is free."""

    def __init__(self, job: Job, rate: float) -> None:
        super().__init__(job)
        self.interval = 1 / rate
        self.total = max(1, round(rate * (job.warm_up + job.seconds)))
        self.free: deque[_Connection] = deque()
        self.looked = 0.0
        self.alarm: _Alarm

    def idle(self, connection: _Connection, now: float) -> None:
        if not self.began or self.over or self.sent == self.total:
            self.free.append(connection)
            return
        due = self.began + self.sent * self.interval
        if due <= now:
            connection.send(self.next(), due)
        else:
            self.free.append(connection)
            self.look_at(due)

    def look(self) -> None:
        """Send what has become due, as far as connections are free."""
        self.looked = now = time.perf_counter()
        while self.free and self.sent < self.total:
            due = self.began + self.sent * self.interval
            if due > now:
                self.look_at(due)
                break
            connection = self.free.popleft()
            if connection in self.connections:
                connection.send(self.next(), due)

    def look_at(self, due: float) -> None:
        """Look again when the next request is due; with no connection free nobody has to."""
        if not self.alarm.is_set:
            self.alarm.set(max(due, self.looked + FINEST))

    async def run(self) -> Outcome:
        await self.open()
        self.alarm = _Alarm(self.look)
        self.start()
        until = self.began + self.total * self.interval
        self.look()
        # uvloop wakes up to a millisecond early, and what is due then would count as unsent.
        while (left := until - time.perf_counter()) > 0:  # noqa: ASYNC110 - it waits for a time
            await asyncio.sleep(left)
        self.look()
        self.alarm.close()
        unsent = self.total - self.sent
        waited = [
            until - (self.began + each * self.interval) for each in range(self.sent, self.total)
        ]
        await self.end()
        self.took += waited
        return self.outcome(until - self.counted_from, unsent)


class _Connection(asyncio.Protocol):
    """One connection: a request on its way, or none."""

    def __init__(self, loop: _Loop) -> None:
        self.loop = loop
        self.since = 0.0
        """From when the latency of what is on its way counts; 0.0: nothing is."""
        self.last = b""
        self.parser = HttpResponseParser(self)
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.loop.connections.add(self)
        self.loop.idle(self, time.perf_counter())

    def send(self, request: bytes, since: float) -> None:
        """Send a request whose latency counts from `since`."""
        self.since = since
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.last = data
        try:
            self.parser.feed_data(data)
        except HttpParserError as error:
            self.loop.fail(f"no HTTP: {error}")
            self.since = 0.0
            self.transport.abort()

    def on_message_complete(self) -> None:
        """Note the answer, and go on."""
        now = time.perf_counter()
        since, self.since = self.since, 0.0
        if not since:
            self.loop.fail("an answer to nothing")
            return
        self.loop.done(since, now, self.parser.get_status_code(), self.last)
        if self.parser.should_keep_alive():
            self.loop.idle(self, now)
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.loop.connections.discard(self)
        if self.since:
            self.loop.fail(f"connection lost: {exc or 'closed by the server'}")
            self.since = 0.0
            if self.loop.over:
                self.loop.look_whether_quiet()
        self.loop.again()


class _Moment(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Timer(ctypes.Structure):
    _fields_ = (("interval", _Moment), ("first", _Moment))


class _Alarm:
    """Calls `ring` once at a moment of `time.perf_counter`, each time that it is set.

    NOTE: timers of event loops are as fine as a millisecond, more than most latencies here.
    Linux has finer ones, which Python offers from 3.13 on.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self.ring = ring
        self.is_set = False
        self.loop = asyncio.get_running_loop()
        self.later: asyncio.TimerHandle | None = None
        if sys.platform == "linux":
            self.libc = ctypes.CDLL(None, use_errno=True)
            flags = os.O_NONBLOCK | os.O_CLOEXEC
            self.descriptor = self.libc.timerfd_create(time.CLOCK_MONOTONIC, flags)
            if self.descriptor < 0:
                raise OSError(ctypes.get_errno(), "no timer")
            self.loop.add_reader(self.descriptor, self._rings)

    def set(self, moment: float) -> None:
        """Ring then, or at once where that is over. It must not be set already."""
        self.is_set = True
        if sys.platform != "linux":
            self.later = self.loop.call_later(moment - time.perf_counter(), self._rings)
            return
        # On Linux this is the clock of `perf_counter`.
        whole, part = divmod(math.ceil(moment * 1e9), 1_000_000_000)
        setting = ctypes.byref(_Timer(_Moment(0, 0), _Moment(whole, part)))
        if self.libc.timerfd_settime(self.descriptor, TFD_TIMER_ABSTIME, setting, None):
            raise OSError(ctypes.get_errno(), "no timer")

    def close(self) -> None:
        """Ring no more."""
        if self.later:
            self.later.cancel()
        if sys.platform == "linux":
            self.loop.remove_reader(self.descriptor)
            os.close(self.descriptor)

    def _rings(self) -> None:
        if sys.platform == "linux":
            os.read(self.descriptor, 8)
        self.is_set = False
        self.ring()


def main() -> None:
    """Read a job from stdin, do it, and write what came of it to stdout."""
    job = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Job)
    # Nothing here makes cycles, and a collection is a pause that no server made.
    gc.freeze()
    gc.disable()
    loop = _Closed(job) if job.rate is None else _Open(job, job.rate)
    sys.stdout.buffer.write(msgspec.msgpack.encode(uvloop.run(loop.run())))


if __name__ == "__main__":
    main()
