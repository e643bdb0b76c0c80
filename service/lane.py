"""Lanes: connections to one server as true pipelines.

Owns the wire: how a URL becomes a socket, how commands that were issued in the same turn of the
event loop leave as one write, how replies find whoever asked, and when a server counts as gone.
Refuses to know keys, scripts and slots: it carries commands and gives back raw replies, error
replies as values.

Nothing is ever sent twice here: once a command has left, only its reply says what became of it.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

import hiredis
from redis.asyncio.connection import (
    Connection as TCPConnection,
)
from redis.asyncio.connection import (
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.exceptions import RedisError

from service.errors import BelongError, Unavailable, Unusable

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    Part = bytes | str | int

ReplyError = hiredis.ReplyError
RETRY_SECONDS = 0.1
"""A server that is known to be gone is tried again this often by each lane, if anybody calls."""
GRACE_SECONDS = 0.01
KEEPALIVE_SECONDS = 30
FORM = (
    "it has to be redis[s]://user:password@host:port/db or unix://user:password@/path?db=0, with"
    " options that redis-py knows, and # / ? @ : percent-encoded in user and password"
)
UNKNOWN = "whether a change was made is unknown, and repeating it is safe"

LARGE = 11
"""Place in `Stats.sizes` of the batches of more than 1,024 commands."""

_NOTHING = object()
_REFUSED = ("WRONGPASS", "NOAUTH", "NOPERM", "ERR")


@dataclass(slots=True)
class Stats:
    """What this process has sent, and what became of its connections.

    A batch is what left as one write; `sizes` counts batches by their commands: up to 1, 2, 4 … and
    1,024, and above. `refusals` counts error replies by what `Connection` makes of them.
    """

    commands: int = 0
    batches: int = 0
    sizes: list[int] = field(default_factory=lambda: [0] * (LARGE + 1))
    connected: int = 0
    lost: int = 0
    failed: int = 0
    refusals: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """How to reach one server: `path` of a Unix socket, else `host` and `port`.

    `fake` names a fakeredis server of this process instead.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    fake: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = None
    tls: ssl.SSLContext | None = None

    @classmethod
    def of(cls, url: str) -> Endpoint:
        """Read a URL as redis-py does, `ssl_ca_certs` and its like included. Raises Unusable."""
        if url.startswith("fake://"):
            return cls(fake=url.removeprefix("fake://"))
        try:
            options = cast("dict[str, Any]", parse_url(url))
            kind = options.pop("connection_class", TCPConnection)
            read = kind(**options)
            tls = read.ssl_context.get() if isinstance(read, SSLConnection) else None
        except OSError as ex:
            message = f"The URL of the store cannot be used: a file in it: {ex.strerror}."
            raise Unusable(message) from None
        except (ValueError, TypeError, RedisError):
            # NOTE: what they say may hold a piece of the password: `redis://user:s3#cret@host` is
            # read as the port "s3". So they are not the cause of ours either.
            message = f"The URL of the store cannot be used: {FORM}."
            raise Unusable(message) from None
        login = (read.username, read.password)
        if isinstance(read, UnixDomainSocketConnection):
            return cls(path=read.path, db=int(read.db), username=login[0], password=login[1])
        return cls(
            host=read.host,
            port=read.port,
            db=int(read.db),
            username=login[0],
            password=login[1],
            tls=tls,
        )

    def at(self, host: str, port: int) -> Endpoint:
        """Give another node of the same cluster: same credentials, same TLS."""
        return replace(self, host=host, port=port, path="")

    def __str__(self) -> str:
        """Name it for a message: never with credentials."""
        if self.path or self.fake:
            return self.path or self.fake
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Waiter(Protocol):
    """Who waits for a reply: a future, or whatever else can be told one. It must not raise."""

    def done(self) -> bool:
        """Whether nobody waits any more."""

    def set_result(self, reply: Any, /) -> None:
        """Take the raw reply."""

    def set_exception(self, error: BaseException, /) -> None:
        """Take that none will come, and why."""


class Link(asyncio.Protocol):
    """One connection, from its opening to its loss; a new one takes its place, never its replies.

    `pending` holds who waits for a reply, in the order of sending. A caller that was cancelled
    keeps its place there, so that the replies after it still find their own callers.
    """

    def __init__(self, name: str, timeout_seconds: float, stats: Stats) -> None:
        """Make one that is not connected yet. `on_loss` is called once when it is lost."""
        self.name = name
        self.lost: str | None = None
        self.foreign = False
        self.sent = 0
        self.pending: deque[Waiter] = deque()
        self.on_loss: Callable[[], None] | None = None
        self._loop = asyncio.get_running_loop()
        self.patience_seconds = timeout_seconds
        """How long nothing may be heard while somebody waits."""
        self._stats = stats
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._heard = 0.0
        self._watch: asyncio.TimerHandle | None = None

    def send(self, *parts: Part) -> asyncio.Future[Any]:
        """Issue a command; it leaves with all others of this turn of the event loop.

        The future gets the raw reply, or Unavailable when the link is lost before it comes.
        """
        future = self._loop.create_future()
        if self.lost is not None:
            future.set_exception(Unavailable(self.lost))
            return future
        # Packed first: where that raises nothing leaves, so nobody may wait for a reply.
        self.hand(packed(parts), future)
        return future

    def hand(self, command: bytes, waiter: Waiter) -> None:
        """Issue a packed command, likewise; only on a link that is not lost."""
        pending = self.pending
        if not pending:
            self._heard = self._loop.time()
            if self._watch is None:
                self._watch = self._loop.call_later(self.patience_seconds, self._check, 0.0)
        pending.append(waiter)
        self._leave(command)

    def tell(self, *parts: Part) -> None:
        """Issue a command whose reply nobody waits for; only for links without `pending`."""
        self._leave(packed(parts))

    def drop(self, why: str) -> None:
        """Give the connection up; everything pending fails, its outcome unknown."""
        if self.lost is not None:
            return
        self.lost = why
        if self._watch is not None:
            self._watch.cancel()
        if self._transport is not None:
            self._transport.abort()
        self._out.clear()
        while self.pending:
            future = self.pending.popleft()
            if not future.done():
                future.set_exception(Unavailable(f"{why}; {UNKNOWN}."))
        if self.on_loss is not None:
            self.on_loss()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio tells us that the socket is open."""
        self._transport = cast("asyncio.Transport", transport)
        opened = transport.get_extra_info("socket")
        if opened is not None and opened.family in (socket.AF_INET, socket.AF_INET6):
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_KEEPIDLE"):
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)

    def data_received(self, data: bytes) -> None:
        """Asyncio gives us bytes: hand the replies in them to who waits longest."""
        reader, pending = self._reader, self.pending
        self._heard = self._loop.time()
        try:
            reader.feed(data)
            reply = reader.gets()
            while reply is not _NOTHING:
                if pending:
                    future = pending.popleft()
                    if not future.done():
                        future.set_result(reply)
                else:
                    self.unasked(reply)
                reply = reader.gets()
        except hiredis.ProtocolError:
            self.foreign = True
            self.drop(f"What listens at {self.name} does not speak the Redis protocol")

    def unasked(self, reply: object) -> None:
        """Take a reply that nobody waits for: here something is wrong with the server."""
        self.drop(f"The store at {self.name} sent what nobody asked for: {str(reply)[:100]}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio tells us that the socket is closed."""
        detail = f" ({exc})" if exc is not None and str(exc) else ""
        self.drop(f"The store at {self.name} closed the connection{detail}")

    def _leave(self, command: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(command)

    def _flush(self) -> None:
        out = self._out
        if self._transport is None or self.lost is not None or not out:
            return
        self._out = []
        self.sent += len(out)
        self._stats.commands += len(out)
        self._stats.batches += 1
        self._stats.sizes[min((len(out) - 1).bit_length(), LARGE)] += 1
        self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def _check(self, overdue_since: float) -> None:
        """See whether replies still come; one timer per link, not one per command."""
        self._watch = None
        if not self.pending:
            return
        left = self.patience_seconds - (self._loop.time() - self._heard)
        if left > 0:
            self._watch = self._loop.call_later(left, self._check, 0.0)
        elif overdue_since != self._heard:
            # NOTE: a process that was itself held up finds its timers due before it has read
            # what waits in its sockets. One more turn of the loop tells the two apart.
            self._watch = self._loop.call_later(GRACE_SECONDS, self._check, self._heard)
        else:
            self.drop(f"The store at {self.name} does not answer")


def packed(parts: tuple[Part, ...]) -> bytes:
    """Write a command as it goes over the wire."""
    # hiredis says that it takes tuples of one.
    command: bytes = hiredis.pack_command(parts)  # type: ignore[arg-type]
    return command


async def connect(endpoint: Endpoint, link: Link, timeout_seconds: float) -> None:
    """Open a link and log in. Raises Unavailable, or Unusable when the server refuses us."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_seconds):
            if endpoint.fake:
                # fakeredis is for tests, and not installed otherwise.
                import_module("service.fake").connect(endpoint.fake, link)
            elif endpoint.path:
                await loop.create_unix_connection(lambda: link, endpoint.path)
            else:
                await loop.create_connection(
                    lambda: link, endpoint.host, endpoint.port, ssl=endpoint.tls
                )
            await _log_in(endpoint, link)
    except TimeoutError:
        message = f"The store at {endpoint} does not answer"
        link.drop(message)
        raise Unavailable(message) from None
    except OSError as ex:
        message = f"The store at {endpoint} cannot be reached: {ex.strerror or ex}"
        link.drop(message)
        raise Unavailable(message) from None
    except BaseException:
        link.drop(f"The store at {endpoint} refused us")
        raise


async def _log_in(endpoint: Endpoint, link: Link) -> None:
    """Send what a connection needs first, at once, and end with a PING, so that it answers."""
    asked = []
    if endpoint.password is not None or endpoint.username is not None:
        login = (endpoint.username, endpoint.password or "")
        asked.append(link.send("AUTH", *(part for part in login if part is not None)))
    if endpoint.db:
        asked.append(link.send("SELECT", endpoint.db))
    asked.append(link.send("PING"))
    for reply in await asyncio.gather(*asked, return_exceptions=True):
        if isinstance(reply, ReplyError):
            if str(reply).startswith(_REFUSED):
                message = f"The store at {endpoint} refuses us: {reply}"
                raise Unusable(message)
            message = f"The store at {endpoint} is not ready: {reply}"
            raise Unavailable(message)
        if isinstance(reply, BaseException):
            raise (Unusable if link.foreign else Unavailable)(link.lost or str(reply))


async def ask(endpoint: Endpoint, timeout_seconds: float, stats: Stats, *parts: Part) -> Any:
    """Ask one question on a connection of its own, so that no lane waits behind it.

    The reply is raw. Raises Unavailable, or Unusable when the server refuses us.
    """
    link = Link(str(endpoint), timeout_seconds, stats)
    try:
        await connect(endpoint, link, timeout_seconds)
        return await link.send(*parts)
    finally:
        link.drop(f"The connection to {endpoint} was closed")


class ChannelLink(Link):
    """A link that hears one channel. `unanswered` counts the pings since anything was heard.

    `refusal` is what the server said when it refused the subscription. `on_reset` is called before
    the first message and when the link is lost after that.
    """

    def __init__(
        self,
        name: str,
        timeout_seconds: float,
        stats: Stats,
        on_message: Callable[[bytes], None],
        on_reset: Callable[[], None],
    ) -> None:
        """Take whom to give the messages."""
        super().__init__(name, timeout_seconds, stats)
        self.unanswered = 0
        self.refusal: str | None = None
        self.gone = asyncio.Event()
        self.on_loss = self._lost
        self.subscribed = False
        self._on_message = on_message
        self._on_reset = on_reset

    def unasked(self, reply: object) -> None:
        """Take a message, the confirmation of the subscription, or the answer to a ping."""
        self.unanswered = 0
        if not isinstance(reply, list):
            if isinstance(reply, ReplyError) and self.lost is None:
                self.refusal = str(reply)
            self.drop(f"The store at {self.name} refuses the subscription: {reply}")
        elif reply[0] == b"message":
            self._on_message(reply[2])
        elif reply[0] == b"subscribe":
            self.subscribed = True
            self._on_reset()

    def ping(self) -> None:
        """Ask for a sign of life."""
        self.unanswered += 1
        self.tell("PING")

    def _lost(self) -> None:
        self.gone.set()
        if self.subscribed:
            self._on_reset()


class Lane:
    """The way to one server: a link, and a new one after it was lost.

    A lane connects when somebody calls. After a loss everybody waits for the first new try; once
    that has failed the server is known to be gone, and calls fail at once with the last reason,
    but for one that tries again every RETRY_SECONDS.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        timeout_seconds: float,
        stats: Stats,
        on_trouble: Callable[[], None],
    ) -> None:
        """Make a lane; `on_trouble` is called when its link is lost or cannot be made."""
        self.link: Link | None = None
        self._endpoint = endpoint
        self._timeout = timeout_seconds
        self._stats = stats
        self._on_trouble = on_trouble
        self._trying: asyncio.Task[None] | None = None
        self._failure: str | None = None
        self._failed_at = 0.0
        self._closed = False

    async def connect(self) -> Link:
        """Give the link, made now if need be. Raises Unavailable."""
        if self.link is not None:
            return self.link
        loop = asyncio.get_running_loop()
        if self._closed:
            message = f"The connection to {self._endpoint} was closed."
            raise Unavailable(message)
        if self._failure is not None and (
            self._trying is not None or loop.time() < self._failed_at + RETRY_SECONDS
        ):
            raise Unavailable(self._failure)
        if self._trying is None:
            self._trying = loop.create_task(self._try())
        trying = self._trying
        # NOTE: not `shield`: a new map closes this lane, and what cancels the try is no reason
        # to cancel who waits for it. A caller's own cancellation ends its waiting alone.
        await asyncio.wait([trying])
        if not trying.cancelled():
            trying.result()
        if self.link is None:
            raise Unavailable(self._failure or f"The store at {self._endpoint} went away.")
        return self.link

    @property
    def waiting(self) -> int:
        """How many commands wait for their reply."""
        return len(self.link.pending) if self.link is not None else 0

    @property
    def sent(self) -> int:
        """How many commands have left on the present link."""
        return self.link.sent if self.link is not None else 0

    def retire(self) -> None:
        """Let what is pending end, then close: for a node that left the cluster."""
        self._closed = True
        if self.waiting:
            asyncio.get_running_loop().call_later(self._timeout, self.close)
        else:
            self.close()

    def close(self) -> None:
        """Close now."""
        self._closed = True
        if self._trying is not None:
            self._trying.cancel()
        if self.link is not None:
            self.link.drop("The connection was closed")

    async def _try(self) -> None:
        link = Link(str(self._endpoint), self._timeout, self._stats)
        try:
            await connect(self._endpoint, link, self._timeout)
        except BelongError as ex:
            self._stats.failed += 1
            self._failure = str(ex)
            self._failed_at = asyncio.get_running_loop().time()
            self._on_trouble()
        else:
            self._stats.connected += 1
            if link.lost is None:
                self._failure = None
                link.on_loss = self._lost
                self.link = link
        finally:
            self._trying = None

    def _lost(self) -> None:
        self.link = None
        if not self._closed:
            self._stats.lost += 1
            self._on_trouble()
