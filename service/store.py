"""The store: the one door to the data, opened once per process.

Bundles the registry and the store of each noun over one connection, and runs what keeps this
process's copies true (registry and near-cache). Nothing above it knows keys, scripts or topology.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self

from service import keys
from service.connection import Connection
from service.nearcache import NearCache
from service.registry import Registry
from service.store_groups import GroupStore
from service.store_members import MemberStore
from service.store_profiles import ProfileStore
from service.store_upkeep import GroupUpkeep


class Store:
    """Open with `Store.open`, close when done. One per event loop."""

    def __init__(self, connection: Connection) -> None:
        """Bundle the nouns over an open connection. Prefer `open`."""
        self.connection = connection
        self.cache = NearCache(connection)
        self.registry = Registry(connection)
        self.groups = GroupStore(connection, self.cache)
        self.members = MemberStore(connection, self.groups)
        self.upkeep = GroupUpkeep(connection, self.groups)
        self.profiles = ProfileStore(connection)
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def open(cls, url: str) -> Self:
        """Connect, check the storage format, and begin to follow changes.

        Raises Unavailable where the server does not answer, Unusable where it is none that
        Belong can use or holds another storage format.
        """
        store = cls(await Connection.open(url))
        try:
            await store.registry.check_format()
        except BaseException:
            await store.connection.close()
            raise
        store.cache.listen()
        loop = asyncio.get_running_loop()
        store._tasks = [
            loop.create_task(store.registry.poll()),
            loop.create_task(store.cache.poll()),
        ]
        return store

    async def ping(self) -> None:
        """Return if the store answers and knows its data; else raise Unavailable."""
        format_key = keys.key(keys.REGISTRY, "format")
        await self.connection.command(format_key, "GET", format_key)

    async def close(self) -> None:
        """Stop following, and close the connection."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.connection.close()
