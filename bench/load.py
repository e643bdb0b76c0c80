"""Load from a process of its own: closed and open loops over HTTP/1.1 connections kept alive.

This owns what a latency is. In a closed loop every connection sends its next request when it has
the answer to its last one; that finds the peak. In an open loop request i is due at `start +
i / rate`, whatever happened to the others, and its latency counts from there: while a server
stalls, requests go on becoming due, wait for a free connection, and their waiting shows. Requests
are encoded before; each connection has one on its way at a time (nothing is pipelined).

An error is an answer that is not 2xx, a connection that broke under a request or could not be made,
or a request without an answer `GRACE` seconds after the end. What was due and had not left when the
time was over is *unsent*: it counts in the histogram with the time it had waited until then.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
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
    client_seconds: float
    """Processor time of the client: near `seconds`, it is the client that was measured."""
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


def run(job: Job) -> Outcome:
    """Make the load from a process of its own, and wait for it.

    Raises:
        subprocess.CalledProcessError: the client itself failed; it said why on stderr.
    """
    done = subprocess.run(
        [sys.executable, "-m", "bench.load"],
        cwd=ROOT,
        input=msgspec.msgpack.encode(job),
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
        self.took: list[float] = []
        self.sent = 0
        self.answered = 0
        self.errors = 0
        self.example = ""
        self.over = False
        self.client_seconds = time.process_time()
        self.quiet = asyncio.Event()
        self.began = 0.0
        self.counted_from = 0.0
        self.connections: set[_Connection] = set()
        self.making: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Make all connections before the clock runs."""
        for _ in range(self.job.connections):
            await self.connect()

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
        elif now >= self.counted_from and not self.over:
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
            client_seconds=self.client_seconds,
            example=self.example,
        )


class _Closed(_Loop):
    """Every connection sends as soon as it has its answer."""

    def idle(self, connection: _Connection, now: float) -> None:
        if self.began and not self.over:
            connection.send(self.requests[self.sent % self.many], now)
            self.sent += 1

    async def run(self) -> Outcome:
        await self.open()
        self.began = time.perf_counter()
        self.counted_from = self.began + self.job.warm_up
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

    def idle(self, connection: _Connection, now: float) -> None:
        due = self.began + self.sent * self.interval
        if self.began and self.sent < self.total and due <= now and not self.over:
            connection.send(self.requests[self.sent % self.many], due)
            self.sent += 1
        else:
            self.free.append(connection)

    def look(self) -> None:
        """Send what has become due, as far as connections are free."""
        now = time.perf_counter()
        while self.free and self.sent < self.total:
            due = self.began + self.sent * self.interval
            if due > now:
                break
            connection = self.free.popleft()
            if connection in self.connections:
                connection.send(self.requests[self.sent % self.many], due)
                self.sent += 1

    async def run(self) -> Outcome:
        await self.open()
        # Half an interval ahead: nothing is due before the timer runs.
        self.began = time.perf_counter() + self.interval / 2
        self.counted_from = self.began + self.job.warm_up
        until = self.began + self.total * self.interval
        stop = _tick(max(self.interval, FINEST), self.look)
        await asyncio.sleep(until - time.perf_counter())
        stop()
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


def _tick(interval: float, look: Callable[[], None]) -> Callable[[], None]:
    """Call `look` every `interval` seconds; gives what ends that.

    NOTE: timers of event loops are as fine as a millisecond, more than most latencies here.
    Linux has finer ones, which Python offers from 3.13 on.
    """
    loop = asyncio.get_running_loop()
    if sys.platform != "linux":
        task = loop.create_task(_each_turn(interval, look))

        def cancel() -> None:
            task.cancel()

        return cancel
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    whole, part = divmod(round(interval * 1e9), 1_000_000_000)
    setting = _Timer(_Moment(whole, part), _Moment(whole, part))
    if descriptor < 0 or libc.timerfd_settime(descriptor, 0, ctypes.byref(setting), None):
        raise OSError(ctypes.get_errno(), "no timer")

    def due() -> None:
        os.read(descriptor, 8)
        look()

    loop.add_reader(descriptor, due)

    def stop() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)

    return stop


async def _each_turn(interval: float, look: Callable[[], None]) -> None:
    while True:
        look()
        await asyncio.sleep(interval)


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
