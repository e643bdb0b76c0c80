"""fakeredis in the place of a server, for tests that need none: `fake://<name>`.

Owns what is behind the wire then: a transport that runs the commands written to it in this
process, one after the other, and answers as a server would. Everything in front of it is the real
thing. Scripts lose their first line here, which fakeredis does not know. One server per name.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

import fakeredis
import hiredis
from redis.exceptions import ResponseError

from service.scripts import plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.lane import Link

POLL_SECONDS = 0.01
ABOUT = b"redis_version:7.0.0\r\nmaxmemory_policy:noeviction\r\ncluster_enabled:0\r\n"
"""What INFO says: fakeredis has none."""

_NOTHING = object()


class FakeServer:
    """One fakeredis server, and the scripts that were sent to it by their real SHA."""

    def __init__(self) -> None:
        """Start empty."""
        self.server = fakeredis.FakeServer()
        self.scripts: dict[str, str] = {}

    def run(self, client: fakeredis.FakeRedis, command: list[bytes]) -> bytes:
        """Run a command and give the reply as it would stand on the wire."""
        name = command[0].upper()
        parts: list[bytes | str] = list(command)
        if name == b"EVAL":
            text = command[1].decode()
            sha = hashlib.sha1(command[1], usedforsecurity=False).hexdigest()
            self.scripts[sha] = parts[1] = plain(text)
        elif name == b"EVALSHA":
            known = self.scripts.get(command[1].decode())
            if known is None:
                return b"-NOSCRIPT No matching script.\r\n"
            parts[:2] = [b"EVAL", known]
        elif name == b"SCRIPT" and command[1].upper() == b"FLUSH":
            self.scripts.clear()
        elif name == b"INFO":
            return encode(ABOUT)
        try:
            return encode(client.execute_command(*parts))  # type: ignore[no-untyped-call]
        except ResponseError as ex:
            return encode(ex)


class FakeTransport(asyncio.Transport):
    """The server's side of one link."""

    def __init__(self, server: FakeServer, link: asyncio.Protocol) -> None:
        """Open a client of the server, without the conversions that redis-py does."""
        super().__init__()
        self._server = server
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._commands = hiredis.Reader(notEnoughData=_NOTHING)
        self._client = fakeredis.FakeRedis(server=server.server, protocol=2)
        self._client.response_callbacks.clear()
        self._hearing: asyncio.Task[None] | None = None
        self._open = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Run what was written; the replies arrive in a later turn, as they do from a socket."""
        self._commands.feed(bytes(data))
        replies = []
        while (command := self._commands.gets()) is not _NOTHING:
            if command[0].upper() == b"SUBSCRIBE":
                self._hearing = self._loop.create_task(self._hear(command[1]))
            elif self._hearing is not None:
                replies.append(encode([b"pong", b""]))
            else:
                replies.append(self._server.run(self._client, command))
        if replies:
            self._loop.call_soon(self._deliver, b"".join(replies))

    def abort(self) -> None:
        """Close."""
        self._open = False
        if self._hearing is not None:
            self._hearing.cancel()

    def _deliver(self, data: bytes) -> None:
        if self._open:
            self._link.data_received(data)

    async def _hear(self, channel: bytes) -> None:
        heard = self._client.pubsub()  # type: ignore[no-untyped-call]
        heard.subscribe(channel)
        while True:
            # fakeredis cannot push: it is asked.
            message = heard.get_message(timeout=0)
            if message is None:
                await asyncio.sleep(POLL_SECONDS)
                continue
            kind = message["type"].encode()
            self._deliver(encode([kind, message["channel"], message["data"]]))


_servers: dict[str, FakeServer] = {}


def server(name: str) -> FakeServer:
    """Give the server of that name, started if need be."""
    return _servers.setdefault(name, FakeServer())


def connect(name: str, link: Link) -> None:
    """Give a link its transport to the server of that name.

    It is this process itself that is slow, if anything is: nobody gives it up.
    """
    link.patience_seconds = 60.0
    link.connection_made(FakeTransport(server(name), link))


def forget(name: str) -> None:
    """Let a server and its data go."""
    _servers.pop(name, None)


def encode(reply: object) -> bytes:
    """Write a reply as RESP2 does."""
    encoder = _ENCODERS.get(type(reply))
    if encoder is not None:
        return encoder(reply)
    if isinstance(reply, Exception):
        # redis-py takes a leading ERR away.
        text = " ".join(str(reply).split())
        return b"-%s\r\n" % (text if text.split(" ")[0].isupper() else f"ERR {text}").encode()
    message = f"fakeredis answered {reply!r}"
    raise TypeError(message)


_ENCODERS: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"$-1\r\n",
    bool: lambda reply: b":%d\r\n" % reply,
    bytes: lambda reply: b"$%d\r\n%s\r\n" % (len(reply), reply),
    float: lambda reply: encode(repr(reply).encode()),
    int: lambda reply: b":%d\r\n" % reply,
    list: lambda reply: b"*%d\r\n%s" % (len(reply), b"".join(map(encode, reply))),
    str: lambda reply: encode(reply.encode()),
}
