"""The request log: one JSON object per line on stderr, about what was answered.

Owns how lines get out: they are collected during a turn of the event loop and leave in writes of
whole lines, each no longer than what a pipe takes in one piece, so that the lines of several
processes do not mix. It never waits for whoever reads them: lines that are not taken in time are
dropped, which a line says once there is room again. What stands in a line is the business of
`record`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import select
import time
from collections import deque

import msgspec

PIECE_BYTES = min(select.PIPE_BUF, 4096)
"""What one write holds at most: so much is taken whole by a pipe (POSIX says 512 at least)."""
HELD_BYTES = 1024 * 1024
"""What may wait for a reader that is slow; more is dropped."""
RETRY_SECONDS = 0.05
CLOSE_SECONDS = 0.5
"""How long the last lines are waited for when the process ends."""
LENGTHS = (1024, 256, 64, 16)
"""To how many characters texts are cut in a line that would not fit, in this order."""

_encode = msgspec.json.Encoder().encode


class RequestLog:
    """Lines on their way to a file descriptor."""

    def __init__(self, descriptor: int = 2) -> None:
        """Write to a descriptor, stderr unless another is given."""
        self.dropped = 0
        """Lines that were dropped, ever."""
        self._descriptor = descriptor
        self._lines: deque[bytes] = deque()
        self._held = 0
        self._unsaid = 0
        self._scheduled = False

    def write(self, line: dict[str, object]) -> None:
        """Take a line. It leaves at the end of this turn of the event loop, or is dropped."""
        encoded = _encode(line)
        if len(encoded) >= PIECE_BYTES:
            encoded = _cut(line)
        if self._held + len(encoded) > HELD_BYTES:
            self.dropped += 1
            self._unsaid += 1
            return
        self._lines.append(encoded)
        self._held += len(encoded) + 1
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def close(self) -> None:
        """Write what is left, for as long as somebody takes it within half a second."""
        deadline = time.monotonic() + CLOSE_SECONDS
        while self._lines and (left := deadline - time.monotonic()) > 0:
            _takes(self._descriptor, left)
            self._write_some()

    def _flush(self) -> None:
        self._write_some()
        self._scheduled = bool(self._lines)
        if self._scheduled:
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._flush)

    def _write_some(self) -> None:
        """Write for as long as the descriptor takes pieces without waiting."""
        while self._lines or self._unsaid:
            if not _takes(self._descriptor):
                return
            if self._unsaid:
                said = {"time": stamp(time.time()), "dropped": self._unsaid}
                self._lines.appendleft(_encode(said))
                self._held += len(self._lines[0]) + 1
                self._unsaid = 0
            piece = [self._lines.popleft()]
            size = len(piece[0]) + 1
            while self._lines and size + len(self._lines[0]) < PIECE_BYTES:
                piece.append(self._lines.popleft())
                size += len(piece[-1]) + 1
            self._held -= size
            piece.append(b"")
            try:
                os.write(self._descriptor, b"\n".join(piece))
            except OSError:
                # Nobody reads it any more: that is no reason to answer nobody.
                self.dropped += len(piece) - 1


def stamp(seconds: float) -> str:
    """Write a moment as ISO 8601 in UTC, to the millisecond."""
    whole = int(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


@functools.lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _takes(descriptor: int, within_seconds: float = 0) -> bool:
    """Whether a piece can be written without waiting, or after so long (or it is closed)."""
    waiting = select.poll()
    with contextlib.suppress(OSError):
        waiting.register(descriptor, select.POLLOUT)
        return bool(waiting.poll(within_seconds * 1000))
    return True


def _cut(line: dict[str, object]) -> bytes:
    """Encode a line that would be too long: its texts are cut, and `cut` says so."""
    encoded = b""
    for length in LENGTHS:
        short = {name: _shortened(value, length) for name, value in line.items()}
        encoded = _encode(short | {"cut": True})
        if len(encoded) < PIECE_BYTES:
            break
    return encoded


def _shortened(value: object, length: int) -> object:
    if isinstance(value, msgspec.Raw):
        value = bytes(value).decode(errors="replace")
    return value[:length] if isinstance(value, str) else value
