"""The connection to the store: every command of Belong goes through here.

Owns what happens between a script call and its reply: which node it goes to, the script that a
server does not know yet, slots that have moved or are moving, what the server's errors mean to
us, and which servers can be used at all. Nothing else knows whether the store is one server, a
cluster or fakeredis. With `lane.py` (the wire) and `topology.py` (the map) it alone knows redis.

A call fails with Unavailable within a second when the store is gone, and works again within two
when it is back. Nothing is sent a second time but what a server refused without running it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Any, Self

from service.errors import CODES, BelongError, ScriptFailed, Unavailable, Unusable, Unwritable
from service.lane import Endpoint, ReplyError, Stats, ask
from service.topology import Topology

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from service.lane import Link
    from service.scripts import Script
    from service.topology import Node

    Part = bytes | str | int

OLDEST = (7, 0)
TIMEOUT_SECONDS = 0.9
PAUSE_SECONDS = (0.01, 0.05)
"""First and longest pause before a command that the server refused for now is sent again."""
HOPS = 3
"""Redirections that are followed at once; those after it wait a pause."""

NOT_NOW = {
    "BUSY": "is held up by a script",
    "ASK": "is moving the data that is needed",
    "CLUSTERDOWN": "is a cluster that is not complete",
    "LOADING": "is still loading its data",
    "MASTERDOWN": "is a replica that has lost its primary",
    "MISCONF": "cannot write its data to disk",
    "MOVED": "keeps sending us from one node to another",
    "NOAUTH": "does not accept our password any more",
    "NOPERM": "does not allow our user what we need",
    "NOREPLICAS": "has too few replicas to write",
    "NOSCRIPT": "was asked on too many nodes to get a script to the right one in time",
    "OOM": "has no memory left",
    "READONLY": "has become a replica, which cannot be written",
    "TRYAGAIN": "is moving the data that is needed",
}
"""First word of a server's error reply -> why it cannot do now what it can do at other times."""
OTHER = "(other)"
"""Counted under this: error replies that begin with no word that we know."""
_NO_WRITES = ("MISCONF", "NOREPLICAS", "OOM")
_MAP_IS_OLD = ("CLUSTERDOWN", "MASTERDOWN", "READONLY")

_log = logging.getLogger("belong.connection")


class Connection:
    """One store, as one process sees it."""

    def __init__(self, topology: Topology, stats: Stats, timeout_seconds: float) -> None:
        """Use `open`."""
        self.stats = stats
        self._topology = topology
        self._timeout = timeout_seconds
        self._listening: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, url: str, *, timeout_seconds: float = TIMEOUT_SECONDS) -> Self:
        """Connect to `redis://`, `rediss://`, `unix://` or, for tests, `fake://<name>`.

        Raises Unusable when the server is not one that Belong can use, Unavailable when it
        cannot be reached.
        """
        stats = Stats()
        seed = Endpoint.of(url)
        topology = Topology(seed, timeout_seconds, stats)
        about = await ask(seed, timeout_seconds, stats, "INFO")
        if _is_cluster(seed, about):
            await topology.become_cluster()
            for node in topology.primaries:
                about = await ask(node.endpoint, timeout_seconds, stats, "INFO")
                _is_cluster(node.endpoint, about)
        return cls(topology, stats, timeout_seconds)

    @property
    def clustered(self) -> bool:
        """Whether the store is a cluster."""
        return self._topology.clustered

    @property
    def nodes(self) -> int:
        """How many servers hold data now."""
        return len(self._topology.primaries)

    async def call(
        self,
        script: Script,
        keys: Sequence[bytes],
        args: Sequence[bytes | str | int],
        *,
        bulk: bool = False,
    ) -> Any:
        """Run a script where its first key lives; give its raw reply.

        The last key is `{tag}:none`, which never exists: while a slot is being moved the server
        then refuses the script before it runs. `bulk` scripts run one at a time on each node,
        and leave room for the others. Raises what the script's header names, Unavailable, and
        ScriptFailed for anything else.
        """
        if not keys or keys[0] == keys[-1] or not keys[-1].endswith(b":none"):
            message = f"{script.name} needs a real key first and {{tag}}:none as its last one"
            raise ValueError(message)
        node = self._topology.node_of(keys[0])
        if bulk:
            reply = await node.in_turn("EVALSHA", script.sha, len(keys), *keys, *args)
        else:
            link = node.interactive.link or await node.interactive.connect()
            reply = await link.send("EVALSHA", script.sha, len(keys), *keys, *args)
        if isinstance(reply, ReplyError):
            parts: tuple[Part, ...] = (len(keys), *keys, *args)
            return await self._again(reply, node, keys[0], parts, script, bulk=bulk)
        return reply

    def link_to(self, key: bytes) -> Link | None:
        """Give the open link to the server that a key lives on; None where there is none now."""
        try:
            return self._topology.node_of(key).interactive.link
        except Unavailable:
            return None

    async def command(self, key: bytes, *parts: bytes | str | int) -> Any:
        """Run one plain command on the server that a key lives on; give its raw reply."""
        node = self._topology.node_of(key)
        link = node.interactive.link or await node.interactive.connect()
        reply = await link.send(*parts)
        if isinstance(reply, ReplyError):
            return await self._again(reply, node, key, parts, None, bulk=False)
        return reply

    async def scan(self, count: int = 1000) -> AsyncIterator[list[bytes]]:
        """Walk every key of every server, in lists of about `count`, perhaps empty.

        As SCAN does it: what is there from beginning to end comes at least once.
        """
        for node in self._topology.primaries:
            cursor = b"0"
            while True:
                reply = await node.in_turn("SCAN", cursor, "COUNT", count)
                if isinstance(reply, ReplyError):
                    raise self._failed(reply, None)
                cursor, keys = reply
                yield keys
                if cursor in (b"0", 0):
                    break

    def subscribe(
        self, channel: bytes, on_message: Callable[[bytes], None], on_reset: Callable[[], None]
    ) -> None:
        """Hear a channel from now on, in the background.

        `on_reset` is called after every subscription and after every loss of one: messages may
        have been missed then. A silent loss is noticed within two seconds.
        """
        heard = self._topology.listen(channel, on_message, on_reset)
        task = asyncio.get_running_loop().create_task(heard)
        self._listening.add(task)
        task.add_done_callback(self._listening.discard)

    async def close(self) -> None:
        """Close everything; what is pending fails."""
        for task in list(self._listening):
            task.cancel()
        await asyncio.gather(*self._listening, return_exceptions=True)
        await self._topology.close()

    async def _again(
        self,
        refusal: ReplyError,
        node: Node,
        key: bytes,
        parts: tuple[Part, ...],
        script: Script | None,
        *,
        bulk: bool,
    ) -> Any:
        """Send again what a server refused without running it, for as long as a call may take.

        `parts` is a whole command, or what follows the name of `script`.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        pause, longest = PAUSE_SECONDS
        whole = ("EVALSHA", script.sha, *parts) if script is not None else parts
        asking = False
        hops = 0
        while True:
            code, _, detail = str(refusal).partition(" ")
            if code == "NOSCRIPT" and script is not None:
                whole = ("EVAL", script.text, *parts)
            elif code in ("MOVED", "ASK"):
                hops += 1
                asking = code == "ASK"
                node = (self._topology.named if asking else self._topology.moved)(detail, node)
            elif code == "TRYAGAIN":
                # The keys are partly here and partly there: begin at the slot's owner again.
                node, asking = self._topology.node_of(key), False
            else:
                raise self._failed(refusal, script)
            if code == "TRYAGAIN" or hops > HOPS:
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest)
            if loop.time() > deadline:
                raise self._failed(refusal, script)
            if bulk and not asking:
                reply = await node.in_turn(*whole)
            else:
                link = node.interactive.link or await node.interactive.connect()
                if asking:
                    # Both leave in one write, next to each other; the reply to the first is "OK".
                    link.send("ASKING").cancel()
                reply = await link.send(*whole)
            if not isinstance(reply, ReplyError):
                return reply
            refusal = reply

    def _failed(self, refusal: ReplyError, script: Script | None) -> BelongError:
        """Say what an error reply means to us; the reply itself is the cause."""
        code, _, detail = str(refusal).partition(" ")
        failure: BelongError
        known = code if code in NOT_NOW or (script is not None and code in CODES) else OTHER
        self.stats.refusals[known] = self.stats.refusals.get(known, 0) + 1
        if script is not None and code in CODES:
            failure = CODES[code](detail)
        elif code in NOT_NOW:
            kind = Unwritable if code in _NO_WRITES else Unavailable
            failure = kind(f"The store {NOT_NOW[code]}.")
            if code in _MAP_IS_OLD:
                self._topology.refresh()
        else:
            failure = ScriptFailed(f"{script.name if script else 'command'}: {refusal}")
        failure.__cause__ = refusal
        return failure


def _is_cluster(endpoint: Endpoint, about: object) -> bool:
    """Read an INFO. Raises Unusable when Belong cannot use that server."""
    if isinstance(about, ReplyError) or not isinstance(about, bytes):
        message = f"The store at {endpoint} does not tell what it is: {about}"
        raise Unusable(message)
    said = dict(
        line.split(":", 1) for line in about.decode(errors="replace").splitlines() if ":" in line
    )
    version = said.get("redis_version", "0")
    if "valkey_version" not in said and tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST:
        message = (
            f"The store at {endpoint} is Redis {version}; Belong needs 7.0 or later, or Valkey."
        )
        raise Unusable(message)
    if said.get("redis_mode") == "sentinel":
        message = f"What listens at {endpoint} is a sentinel, not a store."
        raise Unusable(message)
    policy = said.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        message = (
            f"The store at {endpoint} may evict data: its maxmemory-policy is {policy},"
            " and Belong needs noeviction."
        )
        raise Unusable(message)
    return said.get("cluster_enabled") == "1"
