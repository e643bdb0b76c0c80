"""Derivation: what follows from the facts of profiles, and who is told of it.

A profile's attributes say to which instances it contributes; what counts of an instance's
contributions says what its members inherit. Both live in slots of their own, so it goes in steps,
each one script and compare-and-set: the profile lists its instances, contributes to them, and ends
what it contributed to others; whoever counts, or did, is told what follows; then instances and
profiles are noted as done. Every step may be done twice, late, or by several at once, and ends the
same: contributions of later facts, and values of later versions, are never overwritten. What a dead
process left between two steps stands in `dirty` and `stale`, and the worker goes on with it.

The rules are a copy; every script is told their version, and refuses another than its slot knows.
"""

from __future__ import annotations

import asyncio
import random
import time
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from service import keys, scripts
from service.aggregation import values_of
from service.catching_up import CatchingUp
from service.contributions import NAMES, changes_of, cut, facts_of, parted, planned
from service.errors import Stale, Unavailable
from service.faults import fault
from service.store_groups import all_done

if TYPE_CHECKING:
    from collections.abc import (
        Awaitable,
        Collection,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )

    from service.catching_up import Work
    from service.connection import Connection
    from service.contributions import Facts, Joint, Plan
    from service.environment import Environment
    from service.grouping import Definition, Instance, Rules
    from service.store_definitions import DefinitionStore
    from service.store_instances import InstanceStore

    Part = bytes | str | int
    _Row = tuple[Any, ...]
    """Arguments of a script that belong together: a mixed id or an instance first, bytes last."""

_T = TypeVar("_T")

TOGETHER = 200
"""Profiles that are derived together: what each step asks of a partition is few scripts."""
TURN = 400
"""Contributions that the event loop prepares, or aggregates, between two awaits."""
BULK = 100
"""Above so many profiles it is bulk work, which leaves room for others."""
READ_VALUES = 600
"""Values of attributes that one script reads, counting ten for each profile: 50 take 1 ms."""
READ_BYTES = 262_144
CONTRIBUTE = 50
"""Contributions that one script changes: 1.5 ms."""
SETTLE = 200
"""Profiles that one script tells of an instance: 1.3 ms."""
RELEASE = 200
FINISH = 200
"""Profiles that one script lists, or notes as done: 1.3 ms."""
WRITE_BYTES = 262_144
"""Bytes that one script writes."""
TELL = 100
"""Above so many members to tell, all but those that a request is about are left to the worker."""
PURGE = 1000
TRIES = 20
"""How often a profile or an instance is begun anew, where others change it meanwhile."""
PAUSE_SECONDS = 0.005
LATE_US = 60_000_000
"""Facts that were read so long ago are read again: far less than the ends of contributions stay."""
PLANS = 1000
"""Applications whose rules a process has made ready."""

_BEYOND, _REFUSED, _CHANGED, _RAISED = b"NRSF"
"""Letters that scripts answer: beyond the limit, refused, facts have changed, version raised."""
_NOBODY, _ALL, _SOME = b"0", b"-", b"+"
"""How many of those who contribute to an instance count, as `release_instances` is told."""


class _Outcome(NamedTuple):
    """What contributing came to."""

    refused: dict[bytes, int]
    """Profile -> the seq of the contribution that was above its own."""
    stale: list[bytes]
    beyond: list[tuple[bytes, bytes, int, int]]
    """Profile, instance, its version and rules: contributions beyond the limit."""


class DerivationStore:
    """Derives what follows from facts. Every method may raise Unavailable."""

    def __init__(
        self, connection: Connection, definitions: DefinitionStore, instances: InstanceStore
    ) -> None:
        """Take the open connection, the store that knows the rules, and that of instances."""
        self._connection = connection
        self._definitions = definitions
        self._instances = instances
        self._plans: dict[bytes, Plan] = {}
        self.interrupted: set[int] = set()
        """Numbers of environments where work ran out of its budget; the worker clears it."""

    async def derive_profiles(
        self, env: Environment, mixed: Sequence[bytes], *, bulk: bool = False
    ) -> None:
        """Derive what follows from the facts of profiles (mixed ids), dirty or not.

        When it returns, their instances, and all members of these, are as these facts say. Where an
        instance has more than 100 members to tell, only these profiles are told, and the worker
        tells the others; a profile that others keep changing is left to them and to the worker.
        Safe to repeat, late, and by several at once. About six round trips for 200 profiles,
        partitions side by side; `bulk`, or for more than 100, one script at a time on a node.
        """
        todo = list(dict.fromkeys(mixed))
        bulk = bulk or len(todo) > BULK
        definitions = len((await self._definitions.rules(env)).definitions)
        together = max(min(TOGETHER, TURN // max(definitions, 1)), 1)
        for start in range(0, len(todo), together):
            await self._derive(env, todo[start : start + together], bulk=bulk)

    async def derive_dirty(
        self, env: Environment, before_us: int, *, budget_seconds: float | None = None
    ) -> int:
        """Derive profiles that have been dirty since before a moment. How many.

        For the worker; safe at any time, by several at once. Without a budget until none is left
        that can be derived, else `interrupted` says where some are.
        """

        async def derive(mixed: list[bytes]) -> None:
            await self.derive_profiles(env, mixed, bulk=True)

        return await self._catch_up(env, "dirty", before_us, derive, budget_seconds)

    async def settle_stale(
        self, env: Environment, before_us: int, *, budget_seconds: float | None = None
    ) -> int:
        """Tell the members of instances that have been stale since before a moment. How many.

        As `derive_dirty`.
        """

        async def settle(iids: list[bytes]) -> None:
            rules = await self._definitions.rules(env)
            for _ in range(TRIES):
                try:
                    await self._settle_whole(env, rules, iids, bulk=True)
                except Stale as error:
                    rules = await self._definitions.reload(env, int(str(error)))
                else:
                    return
            raise _restless()

        return await self._catch_up(env, "stale", before_us, settle, budget_seconds)

    async def purge_ended(self, env: Environment, before_us: int) -> int:
        """Forget contributions that ended by facts from before a moment. How many.

        Whoever read earlier facts, and is held up since, could bring one back: it has to be long
        ago. For the worker.
        """
        purged = 0
        for tag in env.partitions:
            step = PURGE
            while step == PURGE:
                step = await self._connection.call(
                    scripts.load("purge_ended"),
                    [keys.key(tag, "ended"), keys.none(tag)],
                    [before_us, PURGE],
                    bulk=True,
                )
                purged += step
        return purged

    async def _derive(self, env: Environment, todo: list[bytes], *, bulk: bool) -> None:
        rules = await self._definitions.rules(env)
        left = dict.fromkeys(todo, 0)
        failure: Stale | None = None
        for attempt in range(TRIES):
            if attempt > 1:
                await asyncio.sleep(random.random() * PAUSE_SECONDS)  # noqa: S311
            failure = None
            try:
                left = await self._round(env, rules, left, bulk=bulk)
            except Stale as error:
                failure = error
                rules = await self._definitions.reload(env, int(str(error)))
            if not left:
                return
        if failure is not None:
            raise _restless() from failure
        # Whoever keeps changing them derives them too, but perhaps not what was asked for here.
        await self._each(
            "defer_profiles",
            ("dirty",),
            [_now_us()],
            _by_home(env, [(one,) for one in left], FINISH),
            bulk,
        )

    async def _round(
        self, env: Environment, rules: Rules, left: dict[bytes, int], *, bulk: bool
    ) -> dict[bytes, int]:
        """Derive profiles once; give those that have to be begun anew.

        With each comes the seq of a contribution that its own have to be above, or 0.
        """
        began = _now_us()
        facts = await self._read_facts(env, self._plan(env, rules), list(left), bulk=bulk)
        fault("derive.read")
        again = await self._list_contributions(env, rules, facts, bulk=bulk)
        fault("derive.listed")
        if _now_us() - began > LATE_US:
            return left
        ready = {mixed: each for mixed, each in facts.items() if mixed not in again}
        outcome = await self._contribute(env, rules, ready, left, bulk=bulk)
        fault("derive.contributed")
        if outcome.refused:
            again |= outcome.refused
            await self._raise_seqs(env, ready, outcome.refused, bulk=bulk)
            ready = {mixed: each for mixed, each in ready.items() if mixed not in again}
        own = []
        for mixed, iid, version, follows in outcome.beyond:
            if mixed in ready and ready[mixed].listed.get(iid) != (b"%d" % version, False):
                number = ready[mixed].named[iid].source.definition.number
                own.append((mixed, iid, version, b"%d %d %d " % (number, version, follows)))
        told, later = await self._settle(env, rules, outcome.stale, own, left, bulk=bulk)
        raised, unfinished = await all_done(
            self._release(env, told, later, bulk=bulk),
            self._finish(env, rules, ready, bulk=bulk),
        )
        for mixed in unfinished:
            again[mixed] = 0
        if raised:
            await self._settle_whole(env, rules, raised, left, bulk=bulk)
        return again

    async def _read_facts(
        self, env: Environment, plan: Plan, todo: list[bytes], *, bulk: bool
    ) -> dict[bytes, Facts]:
        script = scripts.load("read_facts")
        asked = plan.names if len(plan.names) <= NAMES else ()
        head: list[Part] = [plan.rules.version, READ_BYTES, len(asked), *asked]
        many = max(READ_VALUES // (10 + len(plan.names)), 1)
        facts: dict[bytes, Facts] = {}

        async def read(tag: bytes, chunk: list[bytes]) -> None:
            declared = [keys.key(tag, kind) for kind in ("rules", "erasing", "dirty")]
            declared.append(keys.none(tag))
            while chunk:
                rows = await self._connection.call(script, declared, [*head, *chunk], bulk=bulk)
                for mixed, row in zip(chunk, rows, strict=False):
                    facts[mixed] = facts_of(env, plan, row)
                chunk = chunk[len(rows) :]

        homes: dict[bytes, list[bytes]] = {}
        for mixed in todo:
            homes.setdefault(env.home(mixed), []).append(mixed)
        await _all(
            *(
                read(tag, within[start : start + many])
                for tag, within in homes.items()
                for start in range(0, len(within), many)
            )
        )
        return facts

    async def _list_contributions(
        self, env: Environment, rules: Rules, facts: dict[bytes, Facts], *, bulk: bool
    ) -> dict[bytes, int]:
        """List named instances with their profiles; give the profiles whose facts changed."""
        rows: list[_Row] = []
        for mixed, each in facts.items():
            fresh = [iid for iid in each.named if iid not in each.listed]
            if fresh:
                row: list[Part] = [mixed, each.seq, len(fresh)]
                for iid in fresh:
                    row += (iid, b"%d" % each.named[iid].source.definition.number)
                rows.append(tuple(row))
        return await self._unless_changed("list_contributions", "erasing", env, rules, rows, bulk)

    async def _contribute(
        self,
        env: Environment,
        rules: Rules,
        facts: dict[bytes, Facts],
        above: Mapping[bytes, int],
        *,
        bulk: bool,
    ) -> _Outcome:
        outcome = _Outcome({}, [], [])
        stale: set[bytes] = set()
        head: list[Part] = [rules.version, rules.limit, _now_us()]

        async def change(name: str, tag: bytes, chunk: list[tuple[bytes, Joint]]) -> None:
            arguments: list[Part] = [*head]
            for iid, joint in chunk:
                arguments += (iid, joint.number, joint.text, len(joint.rows))
                for row in joint.rows:
                    arguments += row
            answers = await self._connection.call(
                scripts.load(name), [keys.key(tag, "rules"), keys.none(tag)], arguments, bulk=bulk
            )
            for (iid, joint), answer in zip(chunk, answers, strict=True):
                version, follows, is_stale, letters, *seqs = answer
                if is_stale:
                    stale.add(iid)
                for row, letter in zip(joint.rows, letters, strict=True):
                    if letter == _BEYOND:
                        outcome.beyond.append((row[0], iid, int(version), int(follows)))
                    elif letter == _REFUSED:
                        seq = int(seqs.pop(0))
                        outcome.refused[row[0]] = max(seq, outcome.refused.get(row[0], 0))

        lives, ends = changes_of(facts, above)
        fresh, held = parted(lives, facts)
        await _all(
            *(
                change(name, tag, chunk)
                for name, joints in (
                    ("contribute", fresh),
                    # What is there takes no room: so a full store can be emptied.
                    ("end_contributions", held),
                    ("end_contributions", ends),
                )
                for tag, chunk in cut(env, joints, CONTRIBUTE, WRITE_BYTES)
            )
        )
        outcome.stale.extend(stale)
        return outcome

    async def _raise_seqs(
        self, env: Environment, facts: dict[bytes, Facts], above: dict[bytes, int], *, bulk: bool
    ) -> None:
        """Raise seqs of profiles above those of contributions, where these have no later facts."""
        script, now = scripts.load("raise_seq"), _now_us()

        async def raise_seq(tag: bytes, mixed: bytes, seq: int) -> None:
            profile = keys.of_profile(tag, "profile", mixed)
            declared = [profile, keys.key(tag, "dirty"), keys.none(tag)]
            arguments: list[Part] = [mixed, facts[mixed].seq, seq, now]
            await self._connection.call(script, declared, arguments, bulk=bulk)

        await _all(*(raise_seq(env.home(mixed), mixed, seq) for mixed, seq in above.items()))

    async def _settle(
        self,
        env: Environment,
        rules: Rules,
        stale: list[bytes],
        own: Iterable[tuple[bytes, bytes, int, bytes]],
        only: Collection[bytes] | None,
        *,
        bulk: bool,
    ) -> tuple[dict[bytes, tuple[int, bytes]], dict[bytes, int]]:
        """Tell members, and those who were, what follows from the instances; and what is `own`.

        Gives the version of each instance of which all know now, with how many count, and the
        highest version that somebody was told already, where it is above that. Of those with too
        many members, only those of `only` are told, where it is given. Stale, where one follows
        later rules.
        """
        rows = list(own)
        turn = 0
        told: dict[bytes, tuple[int, bytes]] = {}
        for iid, instance in zip(
            stale, await self._instances.read(env, stale, limit=rules.limit, bulk=bulk), strict=True
        ):
            if instance is None:
                told[iid] = 0, _ALL
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
                told[iid] = instance.version, rest if instance.total else _NOBODY
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
        later: dict[bytes, int] = {}
        for chunk, answer in await self._each(
            "settle_profiles", ("rules",), [], _by_home(env, rows, SETTLE), bulk
        ):
            for place, version in zip(answer[::2], answer[1::2], strict=True):
                iid = chunk[place][1]
                later[iid] = max(int(version), later.get(iid, 0))
        fault("derive.settled")
        return told, later

    async def _settle_whole(
        self,
        env: Environment,
        rules: Rules,
        iids: list[bytes],
        only: Collection[bytes] | None = None,
        *,
        bulk: bool,
    ) -> None:
        """Tell everybody of instances; whatever changes meanwhile is left to who changed it."""
        for _ in range(TRIES):
            told, later = await self._settle(env, rules, iids, (), only, bulk=bulk)
            iids = await self._release(env, told, later, bulk=bulk)
            if not iids:
                return

    async def _release(
        self,
        env: Environment,
        told: dict[bytes, tuple[int, bytes]],
        later: dict[bytes, int],
        *,
        bulk: bool,
    ) -> list[bytes]:
        """Note that all know of instances; give those whose version was too low and is raised."""
        rows = [(iid, version, later.get(iid, 0), rest) for iid, (version, rest) in told.items()]
        raised = []
        for chunk, letters in await self._each(
            "release_instances", ("stale", "ended"), [_now_us()], _by_home(env, rows, RELEASE), bulk
        ):
            raised += [
                row[0] for row, letter in zip(chunk, letters, strict=True) if letter == _RAISED
            ]
        fault("derive.released")
        return raised

    async def _finish(
        self, env: Environment, rules: Rules, facts: dict[bytes, Facts], *, bulk: bool
    ) -> dict[bytes, int]:
        """Note profiles as done; give those whose facts changed."""
        rows = []
        for mixed, each in facts.items():
            ended = [iid for iid in each.listed if iid not in each.named]
            if each.behind or ended:
                rows.append((mixed, each.seq, b"%d" % len(ended), *ended))
        again = await self._unless_changed("finish_profiles", "dirty", env, rules, rows, bulk)
        fault("derive.finished")
        return again

    async def _unless_changed(
        self,
        name: str,
        kind: str,
        env: Environment,
        rules: Rules,
        rows: list[_Row],
        bulk: bool,
    ) -> dict[bytes, int]:
        """Run a script for profiles whose facts are as they were read; give the others."""
        answers = await self._each(
            name, ("rules", kind), [rules.version], _by_home(env, rows, FINISH), bulk
        )
        return {
            row[0]: 0
            for chunk, letters in answers
            for row, letter in zip(chunk, letters, strict=True)
            if letter == _CHANGED
        }

    async def _each(
        self,
        name: str,
        kinds: Sequence[str],
        head: list[Part],
        chunks: Iterable[tuple[bytes, list[_Row]]],
        bulk: bool,
    ) -> list[tuple[list[_Row], Any]]:
        """Run a script for each chunk of rows, side by side; give each with its answer."""
        script = scripts.load(name)

        async def run(tag: bytes, chunk: list[_Row]) -> tuple[list[_Row], Any]:
            declared = [keys.key(tag, kind) for kind in kinds]
            declared.append(keys.none(tag))
            arguments: list[Part] = [*head, *chain.from_iterable(chunk)]
            return chunk, await self._connection.call(script, declared, arguments, bulk=bulk)

        return await _all(*(run(tag, chunk) for tag, chunk in chunks))

    async def _catch_up(
        self, env: Environment, kind: str, before_us: int, work: Work, budget_seconds: float | None
    ) -> int:
        behind = CatchingUp(self._connection, env, kind, work, budget_seconds)
        try:
            return await behind.catch_up(before_us)
        finally:
            if behind.interrupted:
                self.interrupted.add(env.number)

    def _plan(self, env: Environment, rules: Rules) -> Plan:
        """Make rules ready for many profiles; the latest of each application are remembered."""
        plan = self._plans.get(env.rules_home)
        if plan is None or plan.rules is not rules:
            if plan is None and len(self._plans) >= PLANS:
                del self._plans[next(iter(self._plans))]
            plan = self._plans[env.rules_home] = planned(rules)
        return plan


async def _all(*calls: Awaitable[_T]) -> list[_T]:
    """Wait for all; one alone does without a task."""
    return [await calls[0]] if len(calls) == 1 else await all_done(*calls)


def _by_home(
    env: Environment, rows: Iterable[_Row], many: int
) -> Iterator[tuple[bytes, list[_Row]]]:
    """Cut rows into what one script takes, by the home of what each begins with."""
    homes: dict[bytes, list[_Row]] = {}
    if len(env.partitions) == 1:
        # PERF: there are several rows for each profile; it is a tenth of what this module costs.
        homes[env.partitions[0]] = list(rows)
    else:
        for row in rows:
            homes.setdefault(env.home(row[0]), []).append(row)
    for tag, within in homes.items():
        if not within:
            continue
        start = size = 0
        for at, row in enumerate(within):
            if at - start >= many or size >= WRITE_BYTES:
                yield tag, within[start:at]
                start, size = at, 0
            size += len(row[-1])
        yield tag, within[start:]


def _encoded(definition: Definition, instance: Instance) -> bytes:
    """Give what members of an instance inherit, as it is kept: attribute id -> value."""
    return b"{%b}" % b",".join(
        b"%b:%b" % (msgspec.json.encode(attribute), outcome.value)
        for attribute, outcome in values_of(definition, instance).items()
    )


def _restless() -> Unavailable:
    return Unavailable("the rules of the application are being changed by too many others at once")


def _now_us() -> int:
    return time.time_ns() // 1000
