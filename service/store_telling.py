"""Telling members what they inherit: whoever counts in an instance, or did, while it is stale.

Each step is one script and compare-and-set, and may be done twice, late, or by several at once:
values of later versions are never overwritten. What a member inherits is a fact to rules: whose
changed is noted by the script that tells them, if rules name it, and they have to be settled.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from service.aggregation import values_of
from service.errors import Stale
from service.faults import fault
from service.rows import by_home, run_rows

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from service.connection import Connection
    from service.environment import Environment
    from service.grouping import Definition, Instance, Rules
    from service.rows import Row
    from service.store_instances import InstanceStore

SETTLE = 200
"""Profiles that one script tells of an instance: 1.5 ms."""
RELEASE = 200
"""Instances that one script releases."""
TELL = 100
"""Above so many members to tell, all but those that a request is about are left to the worker."""
TURN = 400
"""Contributions that the event loop aggregates between two awaits."""
TRIES = 20
"""How often an instance is told anew, where its version is raised meanwhile."""

_RAISED = ord("F")
_NOBODY, _ALL, _SOME = b"0", b"-", b"+"
"""How many of those who contribute to an instance count, as `release_instances` is told."""


class Told(NamedTuple):
    """Who was told what.

    `versions`: of each instance of which all know now, its version, and how many count. `later`:
    the highest version that somebody was told already, where it is above that. `unsettled`:
    profiles (mixed ids) for whom something follows from it by rules.
    """

    versions: dict[bytes, tuple[int, bytes]]
    later: dict[bytes, int]
    unsettled: list[bytes]


class TellingStore:
    """Tells members of instances. Every method may raise Unavailable."""

    def __init__(self, connection: Connection, instances: InstanceStore) -> None:
        """Take the open connection, and the store of instances."""
        self._connection = connection
        self._instances = instances

    async def tell(
        self,
        env: Environment,
        rules: Rules,
        stale: Sequence[bytes],
        own: Iterable[tuple[bytes, bytes, int, bytes]],
        only: Collection[bytes] | None,
        *,
        bulk: bool,
    ) -> Told:
        """Tell members, and those who were, what follows from the instances; and what is `own`.

        Of those with too many members, only those of `only` are told, where it is given. Stale,
        where one follows later rules.
        """
        rows: list[Row] = list(own)
        turn = 0
        told = Told({}, {}, [])
        for iid, instance in zip(
            stale, await self._instances.read(env, stale, limit=rules.limit, bulk=bulk), strict=True
        ):
            if instance is None:
                told.versions[iid] = 0, _ALL
                continue
            if instance.rules > rules.version:
                raise Stale(str(instance.rules))
            counted = [each.mixed for each in instance.counted]
            rest = _ALL if len(counted) == instance.total else _SOME
            former = set(instance.formers).difference(counted)
            if only is not None and len(counted) + len(former) > TELL:
                counted = [mixed for mixed in counted if mixed in only]
                former.intersection_update(only)
            else:
                told.versions[iid] = instance.version, rest if instance.total else _NOBODY
            head = b"%d %d %d " % (instance.number, instance.version, instance.rules)
            definition = rules.by_number.get(instance.number)
            if definition is not None and counted:
                values = head + _encoded(definition, instance)
                rows += ((mixed, iid, instance.version, values) for mixed in counted)
                counted = []
            rows += ((mixed, iid, instance.version, head) for mixed in (*counted, *former))
            turn += len(instance.counted)
            if turn > TURN:
                turn = 0
                await asyncio.sleep(0)
        for chunk, (later, unsettled) in await run_rows(
            self._connection,
            "settle_profiles",
            ("rules",),
            [time.time_ns() // 1000],
            by_home(env, rows, SETTLE),
            bulk=bulk,
        ):
            for place, version in zip(later[::2], later[1::2], strict=True):
                iid = chunk[place][1]
                told.later[iid] = max(int(version), told.later.get(iid, 0))
            told.unsettled.extend(chunk[place][0] for place in unsettled)
        fault("derive.settled")
        return told

    async def tell_all(
        self,
        env: Environment,
        rules: Rules,
        iids: list[bytes],
        only: Collection[bytes] | None = None,
        *,
        bulk: bool,
    ) -> list[bytes]:
        """Tell everybody of instances, as `tell`, and release these. For whom something follows.

        Whatever changes meanwhile is left to who changed it.
        """
        unsettled: list[bytes] = []
        for _ in range(TRIES):
            told = await self.tell(env, rules, iids, (), only, bulk=bulk)
            unsettled += told.unsettled
            iids = await self.release(env, told, bulk=bulk)
            if not iids:
                break
        return unsettled

    async def release(self, env: Environment, told: Told, *, bulk: bool) -> list[bytes]:
        """Note that all know of instances; give those whose version was too low and is raised."""
        rows = [
            (iid, version, told.later.get(iid, 0), rest)
            for iid, (version, rest) in told.versions.items()
        ]
        raised = []
        for chunk, letters in await run_rows(
            self._connection,
            "release_instances",
            ("stale", "ended"),
            [time.time_ns() // 1000],
            by_home(env, rows, RELEASE),
            bulk=bulk,
        ):
            raised += [
                row[0] for row, letter in zip(chunk, letters, strict=True) if letter == _RAISED
            ]
        fault("derive.released")
        return raised


def _encoded(definition: Definition, instance: Instance) -> bytes:
    """Give what members of an instance inherit, as it is kept: attribute id -> value."""
    return b"{%b}" % b",".join(
        b"%b:%b" % (msgspec.json.encode(attribute), outcome.value)
        for attribute, outcome in values_of(definition, instance).items()
    )
