"""The store: the one door to the data, opened once per process.

Bundles the registry and the store of each noun over one connection, and runs what keeps this
process's copies true (registry and near-cache). Nothing above it knows keys, scripts or topology.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Self

from service import counters, keys
from service.connection import Connection
from service.nearcache import NearCache
from service.registry import Registry
from service.store_bulk import BulkStore
from service.store_definitions import DefinitionStore
from service.store_derivation import DerivationStore
from service.store_dynamic import DynamicStore
from service.store_group_directory import GroupDirectory
from service.store_groups import GroupStore
from service.store_ingest import IngestStore
from service.store_instance_index import InstanceIndex
from service.store_instances import InstanceStore
from service.store_jobs import JobStore
from service.store_limits import LimitStore
from service.store_lookups import LookupStore
from service.store_members import MemberStore
from service.store_profiles import ProfileStore
from service.store_queries import QueryStore
from service.store_records import RecordStore
from service.store_settling import SettlingStore
from service.store_shortcuts import ShortcutStore
from service.store_totals import TotalStore
from service.store_transfer import TransferStore
from service.store_upkeep import GroupUpkeep

if TYPE_CHECKING:
    from service.counters import Snapshot


class Store:
    """Open with `Store.open`, close when done. One per event loop."""

    def __init__(self, connection: Connection) -> None:
        """Bundle the nouns over an open connection. Prefer `open`."""
        self.connection = connection
        self.cache = NearCache(connection)
        self.registry = Registry(connection)
        directory = GroupDirectory(connection, self.cache)
        self.definitions = DefinitionStore(connection, self.registry, directory)
        self.instances = InstanceStore(connection)
        self.instance_index = InstanceIndex(connection)
        self.settling = SettlingStore(connection, self.definitions)
        self.jobs = JobStore(connection, self.definitions, self.settling)
        self.dynamic = DynamicStore(
            connection, directory, self.definitions, self.registry, self.jobs
        )
        self.groups = GroupStore(connection, self.cache, self.dynamic)
        self.upkeep = GroupUpkeep(connection, self.groups)
        self.bulk = BulkStore(connection, self.settling)
        self.members = MemberStore(connection, self.settling)
        self.queries = QueryStore(connection, self.groups, self.members)
        self.jobs.saving = self.queries
        self.lookups = LookupStore(connection, self.groups, self.members)
        self.shortcuts = ShortcutStore(connection)
        self.derivation = DerivationStore(
            connection, self.definitions, self.instances, self.settling
        )
        self.profiles = ProfileStore(connection, self.derivation, self.settling)
        self.records = RecordStore(connection, self.profiles, self.definitions)
        self.ingest = IngestStore(connection, self.profiles, self.definitions)
        self.limits = LimitStore(connection)
        self.totals = TotalStore(connection)
        self.transfer = TransferStore(connection, self.groups, self.profiles, self.settling)
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

    def tell(self, to: Snapshot) -> None:
        """Write what this process has counted of it into a snapshot (a source of `Counters`)."""
        stats = self.connection.stats
        to.counters |= {
            "belong_store_commands_total": stats.commands,
            "belong_store_connects_total": stats.connected,
            "belong_store_connects_failed_total": stats.failed,
            "belong_store_connections_lost_total": stats.lost,
            "belong_nearcache_drops_total": self.cache.drops,
            "belong_rules_evaluated_total": self.settling.evaluated,
            counters.key("belong_nearcache_lookups_total", ["hit"]): self.cache.hits,
            counters.key("belong_nearcache_lookups_total", ["miss"]): self.cache.misses,
        }
        for code, refused in stats.refusals.items():
            to.counters[counters.key("belong_store_refusals_total", [code])] = refused
        to.histograms["belong_store_pipeline_commands"] = [*stats.sizes, stats.commands]
        to.gauges["belong_nearcache_entries"] = self.cache.size

    async def close(self) -> None:
        """Stop following, and close the connection."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.connection.close()
