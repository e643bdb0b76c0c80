"""Which server holds which slot.

Owns the map of a cluster: asked for at the start, asked again whenever a server says that it has
moved on or a connection is lost, so that a failover is survived and nodes that vanish are
dropped. A single server is a map of one node. Knows slots and lanes, no scripts.
"""

from __future__ import annotations

import asyncio
import logging
from itertools import islice
from typing import TYPE_CHECKING, Any

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from service.errors import BelongError, Unavailable
from service.lane import ChannelLink, Endpoint, Lane, ReplyError, Stats, ask, connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

REFRESH_SECONDS = 0.2
ASKED_AT_ONCE = 4
IDLE_SECONDS = 0.001
PING_SECONDS = 0.4
PINGS_UNANSWERED = 3
RESUBSCRIBE_SECONDS = 0.2
REFUSED_SECONDS = 10.0
"""A subscription that the server refuses is tried again this often: somebody has to allow it."""

_log = logging.getLogger("belong.topology")

_REFUSED = (
    "the store at %s does not let our user hear the channel %s (%s): changes that other processes"
    " make are noticed only when their versions are read, once a second"
)

Address = tuple[str, int]


class Node:
    """One server: a lane for ordinary calls, one for bulk, and whose turn it is on the latter."""

    def __init__(self, endpoint: Endpoint, interactive: Lane, bulk: Lane) -> None:
        """Bundle them."""
        self.endpoint = endpoint
        self.interactive = interactive
        self.bulk = bulk
        self._turn = asyncio.Lock()

    async def in_turn(self, *parts: bytes | str | int) -> Any:
        """Send one bulk command, when no other is in flight, and make room for the ordinary ones.

        If any of those was pending while the command ran, it had to wait; then the turn ends
        only after as long a pause as the command took.
        """
        loop = asyncio.get_running_loop()
        async with self._turn:
            link = self.bulk.link or await self.bulk.connect()
            while link.pending:  # noqa: ASYNC110  rare
                # A caller that was cancelled has left its command behind.
                await asyncio.sleep(IDLE_SECONDS)
            answered = self.interactive.sent - self.interactive.waiting
            began = loop.time()
            reply = await link.send(*parts)
            if self.interactive.sent != answered or self.interactive.waiting:
                await asyncio.sleep(loop.time() - began)
            return reply

    def retire(self) -> None:
        """Close both lanes as soon as what is pending has ended."""
        self.interactive.retire()
        self.bulk.retire()

    def close(self) -> None:
        """Close both lanes now."""
        self.interactive.close()
        self.bulk.close()


class Topology:
    """The nodes and, on a cluster, the map of slots to them."""

    def __init__(self, seed: Endpoint, timeout_seconds: float, stats: Stats) -> None:
        """Begin with the server of the URL alone."""
        self.clustered = False
        self._seed = seed
        self._timeout = timeout_seconds
        self._stats = stats
        self._nodes: dict[Address, Node] = {}
        self._replicas: set[Address] = set()
        self._slots: list[Node | None] = []
        self._only = self._node(seed)
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed_at = 0.0
        self._turns = 0

    @property
    def primaries(self) -> list[Node]:
        """Every node that has slots."""
        if not self.clustered:
            return [self._only]
        return list(dict.fromkeys(node for node in self._slots if node is not None))

    def node_of(self, key: bytes) -> Node:
        """Give the node that serves a key. Raises Unavailable where none does."""
        if not self.clustered:
            return self._only
        node = self._slots[key_slot(key)]
        if node is None:
            self.refresh()
            message = f"No node of the cluster serves slot {key_slot(key)}."
            raise Unavailable(message)
        return node

    def named(self, detail: str, teller: Node) -> Node:
        """Give the node that `<slot> <host>:<port>` names; without a host, as who told it."""
        host, _, port = detail.rpartition(" ")[2].rpartition(":")
        return self._at(host or teller.endpoint.host, int(port))

    def moved(self, detail: str, teller: Node) -> Node:
        """Note what a MOVED says, have the whole map asked again, and give the node it names."""
        node = self.named(detail, teller)
        if self.clustered:
            self._slots[int(detail.split(maxsplit=1)[0])] = node
        self.refresh()
        return node

    async def become_cluster(self) -> None:
        """Ask the server of the URL for the map. Raises Unavailable."""
        self.clustered = True
        self._slots = [None] * REDIS_CLUSTER_HASH_SLOTS
        await self._ask()

    def refresh(self) -> None:
        """Have the map asked again: one question at a time, and not sooner than allowed."""
        if self.clustered and self._refreshing is None:
            self._refreshing = asyncio.get_running_loop().create_task(self._refresh())

    async def listen(
        self, channel: bytes, on_message: Callable[[bytes], None], on_reset: Callable[[], None]
    ) -> None:
        """Hear a channel until cancelled; after a loss on whichever server answers.

        A refusal is logged once, until a subscription succeeds.
        """
        is_told = False
        while True:
            for endpoint in self.listeners():
                link = ChannelLink(str(endpoint), self._timeout, self._stats, on_message, on_reset)
                try:
                    await connect(endpoint, link, self._timeout)
                    link.tell("SUBSCRIBE", channel)
                    while link.unanswered < PINGS_UNANSWERED and self.knows(endpoint):
                        link.ping()
                        if await _happened(link.gone, PING_SECONDS):
                            break
                except BelongError:
                    # The next server, or the same one again: who calls is told why.
                    pass
                finally:
                    link.drop(f"The connection to {endpoint} was closed")
                if link.refusal is not None and not is_told:
                    _log.warning(_REFUSED, endpoint, channel.decode(), link.refusal)
                is_told = link.refusal is not None or (is_told and not link.subscribed)
                pause = RESUBSCRIBE_SECONDS if link.refusal is None else REFUSED_SECONDS
                await asyncio.sleep(pause)
            self.refresh()

    def listeners(self) -> list[Endpoint]:
        """Give the servers that messages may be heard from, a different one first each time."""
        if not self.clustered:
            return [self._seed]
        known = [self._seed.at(*address) for address in self._addresses()]
        self._turns += 1
        cut = self._turns % len(known)
        return known[cut:] + known[:cut]

    def knows(self, endpoint: Endpoint) -> bool:
        """Say whether a server still belongs to us."""
        return not self.clustered or (endpoint.host, endpoint.port) in self._addresses()

    async def close(self) -> None:
        """Close every lane."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait([self._refreshing])
        self.clustered = False
        for node in {self._only, *self._nodes.values()}:
            node.close()

    def _addresses(self) -> list[Address]:
        serving = [(node.endpoint.host, node.endpoint.port) for node in self.primaries]
        return [*serving, *sorted(self._replicas)] or [(self._seed.host, self._seed.port)]

    def _node(self, endpoint: Endpoint) -> Node:
        lanes = [Lane(endpoint, self._timeout, self._stats, self.refresh) for _ in range(2)]
        return Node(endpoint, *lanes)

    def _at(self, host: str, port: int) -> Node:
        node = self._nodes.get((host, port))
        if node is None:
            node = self._nodes[host, port] = self._node(self._seed.at(host, port))
        return node

    async def _refresh(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(self._refreshed_at + REFRESH_SECONDS - loop.time())
            await self._ask()
        except BelongError:
            # Nobody answered. Whoever calls next fails, and has us ask again.
            pass
        finally:
            self._refreshed_at = loop.time()
            self._refreshing = None

    async def _ask(self) -> None:
        """Ask several nodes at once, and take the first map that covers every slot."""
        known = self.listeners()
        self._turns += 1
        candidates = [*islice(known, ASKED_AT_ONCE), self._seed]
        asked = [asyncio.ensure_future(self._map_of(one)) for one in dict.fromkeys(candidates)]
        best: tuple[int, Endpoint, list[Any]] | None = None
        failure: BaseException | None = None
        try:
            for answered in asyncio.as_completed(asked):
                try:
                    teller, ranges = await answered
                except BelongError as ex:
                    failure = ex
                    continue
                covered = sum(last - first + 1 for first, last, *_ in ranges)
                if best is None or covered > best[0]:
                    best = (covered, teller, ranges)
                if covered == REDIS_CLUSTER_HASH_SLOTS:
                    break
        finally:
            for one in asked:
                one.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        if best is None:
            raise failure or Unavailable("No node of the cluster answers.")
        self._install(best[1], best[2])

    async def _map_of(self, endpoint: Endpoint) -> tuple[Endpoint, list[Any]]:
        reply = await ask(endpoint, self._timeout, self._stats, "CLUSTER", "SLOTS")
        if isinstance(reply, ReplyError):
            message = f"The store at {endpoint} does not tell its slots: {reply}"
            raise Unavailable(message)
        return endpoint, reply

    def _install(self, teller: Endpoint, ranges: Iterable[Any]) -> None:
        """Put a new map in place, and drop the nodes that are not in it."""
        slots: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        replicas: set[Address] = set()
        for first, last, primary, *others in ranges:
            node = self._at(*_address(primary, teller))
            slots[first : last + 1] = [node] * (last + 1 - first)
            replicas.update(_address(other, teller) for other in others)
        serving = {node for node in slots if node is not None}
        for address, node in list(self._nodes.items()):
            if node not in serving:
                del self._nodes[address]
                node.retire()
        self._slots, self._replicas = slots, replicas


def _address(told: list[Any], teller: Endpoint) -> Address:
    """Read a node of CLUSTER SLOTS; without a host it is where the answer came from."""
    host = (told[0] or b"").decode()
    if host in ("", "?"):
        host = teller.host or "127.0.0.1"
    return host, int(told[1])


async def _happened(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event for so long, and say whether it came."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False
