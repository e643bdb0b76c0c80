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
from typing import TYPE_CHECKING, NamedTuple

from service import keys, scripts
from service.catching_up import CatchingUp
from service.contributions import NAMES, changes_of, cut, facts_of, parted, planned
from service.errors import Stale
from service.faults import fault
from service.rows import all_done_of, by_home, restless, run_rows
from service.store_groups import all_done
from service.store_telling import TellingStore

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from service.catching_up import Work
    from service.connection import Connection
    from service.contributions import Facts, Joint, Plan
    from service.environment import Environment
    from service.grouping import Rules
    from service.rows import Row
    from service.store_definitions import DefinitionStore
    from service.store_instances import InstanceStore
    from service.store_settling import SettlingStore

    Part = bytes | str | int

TOGETHER = 200
"""Profiles that are derived together: what each step asks of a partition is few scripts."""
TURN = 400
"""Contributions that the event loop prepares between two awaits."""
BULK = 100
"""Above so many profiles it is bulk work, which leaves room for others."""
READ_VALUES = 600
"""Values of attributes that one script reads, counting ten for each profile: 50 take 1 ms."""
READ_BYTES = 262_144
CONTRIBUTE = 50
"""Contributions that one script changes: 1.5 ms."""
FINISH = 200
"""Profiles that one script lists, or notes as done: 1.3 ms."""
WRITE_BYTES = 262_144
"""Bytes that one script writes."""
PURGE = 1000
TRIES = 20
"""How often a profile or an instance is begun anew, where others change it meanwhile."""
PAUSE_SECONDS = 0.005
LATE_US = 60_000_000
"""Facts that were read so long ago are read again: far less than the ends of contributions stay."""
PLANS = 1000
"""Applications whose rules a process has made ready."""

_BEYOND, _REFUSED, _CHANGED = b"NRS"
"""Letters that scripts answer: beyond the limit, refused, facts have changed."""


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
        self,
        connection: Connection,
        definitions: DefinitionStore,
        instances: InstanceStore,
        settling: SettlingStore,
    ) -> None:
        """Take the open connection, who knows the rules, instances, and who settles."""
        self._connection = connection
        self._definitions = definitions
        self._telling = TellingStore(connection, instances)
        self._settling = settling
        self._plans: dict[bytes, Plan] = {}
        self.interrupted: set[int] = set()
        """Numbers of environments where work ran out of its budget; the worker clears it."""

    async def derive_profiles(
        self,
        env: Environment,
        mixed: Sequence[bytes],
        *,
        names: Collection[bytes] = (),
        bulk: bool = False,
        walking: bool = False,
    ) -> None:
        """Derive what follows from the facts of profiles (mixed ids), dirty or not.

        When it returns, their instances, and all members of these, are as these facts say, and so
        are the dynamic groups of all of them. Where an instance has more than 100 members to tell,
        only these profiles are told, and the worker tells the others; a profile that others keep
        changing is left to them and to the worker. `names` is a hint what changed of them, as
        `SettlingStore.settle` takes it; `walking`: their own dynamic groups follow elsewhere. Safe
        to repeat, late, and by several at once. About six round trips for 200 profiles, partitions
        side by side, and two or three where rules name what changed; `bulk`, or for more than 100,
        one script at a time on a node.
        """
        todo = list(dict.fromkeys(mixed))
        bulk = bulk or len(todo) > BULK
        definitions = len((await self._definitions.rules(env)).definitions)
        together = max(min(TOGETHER, TURN // max(definitions, 1)), 1)
        for start in range(0, len(todo), together):
            some = todo[start : start + together]
            unsettled: list[bytes] = []
            await self._derive(env, some, unsettled, bulk=bulk)
            if walking:
                unsettled = list(set(unsettled).difference(some))
            else:
                unsettled += some
            await self._settle(env, unsettled, names, bulk=bulk)

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
                    unsettled = await self._telling.tell_all(env, rules, iids, bulk=True)
                except Stale as error:
                    rules = await self._definitions.reload(env, int(str(error)))
                else:
                    await self._settle(env, unsettled, (), bulk=True)
                    return
            raise restless()

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

    async def _settle(
        self, env: Environment, mixed: Sequence[bytes], names: Collection[bytes], *, bulk: bool
    ) -> None:
        """Have dynamic groups follow, of profiles whose instances do."""
        # By rules that were just compared with those in force.
        rules = await self._definitions.rules(env)
        if mixed and rules.dynamic:
            shared = map(keys.named_definition, rules.by_number)
            await self._settling.settle(env, mixed, {*names, *shared}, bulk=bulk)

    async def _derive(
        self, env: Environment, todo: list[bytes], unsettled: list[bytes], *, bulk: bool
    ) -> None:
        rules = await self._definitions.rules(env)
        left = dict.fromkeys(todo, 0)
        failure: Stale | None = None
        for attempt in range(TRIES):
            if attempt > 1:
                await asyncio.sleep(random.random() * PAUSE_SECONDS)  # noqa: S311
            failure = None
            try:
                left = await self._round(env, rules, left, unsettled, bulk=bulk)
            except Stale as error:
                failure = error
                rules = await self._definitions.reload(env, int(str(error)))
            if not left:
                return
        if failure is not None:
            raise restless() from failure
        # Whoever keeps changing them derives them too, but perhaps not what was asked for here.
        await run_rows(
            self._connection,
            "defer_profiles",
            ("dirty",),
            [_now_us()],
            by_home(env, [(one,) for one in left], FINISH),
            bulk=bulk,
        )

    async def _round(
        self,
        env: Environment,
        rules: Rules,
        left: dict[bytes, int],
        unsettled: list[bytes],
        *,
        bulk: bool,
    ) -> dict[bytes, int]:
        """Derive profiles once; give those that have to be begun anew.

        With each comes the seq of a contribution that its own have to be above, or 0. For whom
        something follows by rules is added to `unsettled`.
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
        told = await self._telling.tell(env, rules, outcome.stale, own, left, bulk=bulk)
        unsettled += told.unsettled
        raised, unfinished = await all_done(
            self._telling.release(env, told, bulk=bulk),
            self._finish(env, rules, ready, bulk=bulk),
        )
        for mixed in unfinished:
            again[mixed] = 0
        if raised:
            unsettled += await self._telling.tell_all(env, rules, raised, left, bulk=bulk)
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

        await all_done_of(
            *(
                read(tag, within[start : start + many])
                for tag, within in env.by_home(todo).items()
                for start in range(0, len(within), many)
            )
        )
        return facts

    async def _list_contributions(
        self, env: Environment, rules: Rules, facts: dict[bytes, Facts], *, bulk: bool
    ) -> dict[bytes, int]:
        """List named instances with their profiles; give the profiles whose facts changed."""
        rows: list[Row] = []
        for mixed, each in facts.items():
            fresh = [iid for iid in each.named if iid not in each.listed]
            if fresh:
                row: list[Part] = [mixed, each.seq, len(fresh)]
                for iid in fresh:
                    row += (iid, b"%d" % each.named[iid].source.definition.number)
                rows.append(tuple(row))
        return await self._unless_changed(
            "list_contributions", "erasing", env, rules, rows, bulk=bulk
        )

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
        await all_done_of(
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

        await all_done_of(*(raise_seq(env.home(mixed), mixed, seq) for mixed, seq in above.items()))

    async def _finish(
        self, env: Environment, rules: Rules, facts: dict[bytes, Facts], *, bulk: bool
    ) -> dict[bytes, int]:
        """Note profiles as done; give those whose facts changed."""
        rows = []
        for mixed, each in facts.items():
            ended = [iid for iid in each.listed if iid not in each.named]
            if each.behind or ended:
                rows.append((mixed, each.seq, b"%d" % len(ended), *ended))
        again = await self._unless_changed(
            "finish_profiles", "dirty", env, rules, rows, _now_us(), bulk=bulk
        )
        fault("derive.finished")
        return again

    async def _unless_changed(
        self,
        name: str,
        kind: str,
        env: Environment,
        rules: Rules,
        rows: list[Row],
        *head: Part,
        bulk: bool,
    ) -> dict[bytes, int]:
        """Run a script for profiles whose facts are as they were read; give the others."""
        answers = await run_rows(
            self._connection,
            name,
            ("rules", kind),
            [rules.version, *head],
            by_home(env, rows, FINISH),
            bulk=bulk,
        )
        return {
            row[0]: 0
            for chunk, letters in answers
            for row, letter in zip(chunk, letters, strict=True)
            if letter == _CHANGED
        }

    async def _catch_up(
        self, env: Environment, kind: str, before_us: int, work: Work, budget_seconds: float | None
    ) -> int:
        behind = CatchingUp(self._connection, env, kind, work, budget_seconds, self.interrupted)
        return await behind.catch_up(before_us)

    def _plan(self, env: Environment, rules: Rules) -> Plan:
        """Make rules ready for many profiles; the latest of each application are remembered."""
        plan = self._plans.get(env.rules_home)
        if plan is None or plan.rules is not rules:
            if plan is None and len(self._plans) >= PLANS:
                del self._plans[next(iter(self._plans))]
            plan = self._plans[env.rules_home] = planned(rules)
        return plan


def _now_us() -> int:
    return time.time_ns() // 1000
