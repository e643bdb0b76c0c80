"""The ceiling of everything that serves HTTP here: a protocol that answers fixed bytes.

The same event loop, one process on the same core, the size of a check's answer; no request is read.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import uvloop

from bench import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.measurement import Subject

ANSWER = (
    b"HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 12:00:00 GMT\r\naccess-control-allow-origin: *\r\n"
    b"access-control-expose-headers: X-Request-Id, Retry-After\r\ncontent-length: 18\r\n"
    b"content-type: application/json\r\nx-request-id: 0123456789abcdef-12345\r\n\r\n"
    b'{"results":[true]}'
)


class Bare(asyncio.Protocol):
    """Answers whatever comes in one piece."""

    _transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, _: bytes) -> None:
        """Answer."""
        self._transport.write(ANSWER)


@contextmanager
def server(like: Subject) -> Iterator[Subject]:
    """Run one beside a subject, where that one's HTTP runs."""
    with subprocess.Popen(
        [sys.executable, "-m", "bench.bare"], cwd=serving.ROOT, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            port = int(process.stdout.readline())
            serving.pin(process.pid, serving.API_CORE)
            yield serving.Running("belong", like.host, port, like.token, process.pid, None)
        finally:
            process.terminate()


async def _serve() -> None:
    made = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", 0)
    sys.stdout.write(f"{made.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await made.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve())
