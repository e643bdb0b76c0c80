"""Settling: memberships of dynamic groups follow what changed of profiles, or what time turned.

Whoever writes a fact that a rule names notes the name with the profile, in the same script. Here
the rules that such names touch are evaluated on what is held of the profile, in one read, and what
follows is written in one script: if the rules are still those, and every fact that was looked at is
as it was read. Else it is begun anew. The names that were followed are forgotten by the same
script, and no others: so nothing is lost, whoever does it, however late, and by several at once.
What a dead process left stands in `unsettled`, and the worker goes on with it. What time alone may
turn has a wake-up call in `due`.
"""

from __future__ import annotations

import asyncio
import random
import time
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from service import ids, keys, scripts
from service.catching_up import CatchingUp
from service.errors import Stale, Unavailable
from service.faults import fault
from service.rows import all_done_of, restless
from service.rules import Verdict
from service.store_previews import PreviewStore
from service.store_subjects import SubjectStore, Turn
from service.subjects import cut, planned, row_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

    from service.connection import Connection
    from service.environment import Environment
    from service.rules import Book, LeafResult, Rule
    from service.store_definitions import DefinitionStore
    from service.store_previews import Preview
    from service.subjects import Plan, Row

    Step = Callable[[Book, list[bytes]], Awaitable[list[bytes]]]

TOGETHER = 200
"""Profiles that are settled together: what each step asks of a partition is few scripts."""
WALK = 75
"""Profiles that are walked over together, while others are."""
BULK = 100
"""Above so many profiles it is bulk work, which leaves room for others."""
WRITE = 40
"""What one script writes, in memberships and profiles: 40 that join a group take 0.9 ms."""
WRITE_BYTES = 262_144
HINT = 300
"""Looks that a hint may cost each profile."""
RULES = 100
"""Rules that a walk evaluates in one pass."""
TAKE = 100
"""Wake-up calls that one script takes."""
TRIES = 20
"""How often profiles are begun anew, where others change them meanwhile."""
PAUSE_SECONDS = 0.005
HOUR_US = 3_600_000_000
TURNOVER_SECONDS = 25 * 3_600
"""How long the turnover of an hour is kept: it is asked for during the 23 after it."""
BOOKS = 1000
"""Applications of whose rules plans are remembered."""
PLANS = 250
"""Plans of one application that are remembered."""

_CHANGED = ord("S")
_OUTSIDE = Verdict(holds=False, turns_at_us=None)
"""Of whom there is no fact is in no dynamic group."""


class SettlingStore:
    """Has memberships of dynamic groups follow. Every method may raise Unavailable.

    Development has no dynamic groups: nothing is done there.
    """

    def __init__(self, connection: Connection, definitions: DefinitionStore) -> None:
        """Take the open connection, and the store that knows the rules."""
        self._connection = connection
        self._definitions = definitions
        self._subjects = SubjectStore(connection)
        self._previews = PreviewStore(connection, definitions, self._subjects)
        self._plans: dict[bytes, _Plans] = {}
        self.clock: Callable[[], int] = _now_us
        """What time it is, in us: what rules that time may turn are evaluated by."""
        self.evaluated = 0
        """Rules that this process has evaluated: one for one profile is one."""
        self.interrupted: set[int] = set()
        """Numbers of environments where work ran out of its budget; the worker clears it."""

    async def settle(
        self,
        env: Environment,
        mixed: Sequence[bytes],
        names: Collection[bytes] = (),
        *,
        bulk: bool = False,
    ) -> None:
        """Have follow what changed of profiles (mixed ids), if anything did.

        When it returns, their memberships of dynamic groups are as the rules say of their facts;
        a profile that others keep changing is left to them and to the worker, and one that is being
        erased is passed over. `names` is a hint which names changed: then it takes two round trips
        for 200 profiles, else three, and one where nothing changed. Safe to repeat, late, and by
        several at once. `bulk`, or for more than 100, one script at a time on a node.
        """
        if _has_rules(env):
            await self._settle_all(env, mixed, names, 0, bulk=bulk)

    async def walk(
        self, env: Environment, mixed: Sequence[bytes], groups: Collection[int] | None
    ) -> None:
        """Have profiles follow the rules of some dynamic groups (None: all), changed or not.

        Where nothing has to change that is one round trip for 75 profiles, else two; bulk work. Of
        a profile that others keep changing it is noted that this has to be done.
        """
        if not _has_rules(env):
            return
        todo = list(dict.fromkeys(mixed))
        book = await self._definitions.book(env)
        numbers = sorted(book.rules_by_number if groups is None else groups)
        parts = iter(
            [
                (todo[start : start + WALK], numbers[first : first + RULES])
                for first in range(0, len(numbers), RULES)
                for start in range(0, len(todo), WALK)
            ]
        )

        async def work() -> None:
            for part in parts:
                await self._walk(env, *part)

        # PERF: rules of some are evaluated while the store reads others: 1.4 times as many.
        await all_done_of(work(), work())

    async def settle_unsettled(
        self, env: Environment, before_us: int, *, budget_seconds: float | None = None
    ) -> int:
        """Settle profiles of which something changed before a moment. How many.

        For the worker; safe at any time, by several at once. Without a budget until none is left
        that can be settled, else `interrupted` says where some are.
        """
        if not _has_rules(env):
            return 0

        async def settle(mixed: list[bytes]) -> None:
            await self._settle_all(env, mixed, (), 0, bulk=True)

        behind = CatchingUp(
            self._connection, env, "unsettled", settle, budget_seconds, self.interrupted
        )
        return await behind.catch_up(before_us)

    async def turn_due(
        self, env: Environment, now_us: int, *, budget_seconds: float | None = None
    ) -> int:
        """Evaluate the rules that time may have turned by a moment. How many wake-up calls.

        For the worker, once a second; as `settle_unsettled`. A call for a profile or a group that
        is gone ends with that.
        """
        if not _has_rules(env):
            return 0
        until = float("inf") if budget_seconds is None else time.monotonic() + budget_seconds
        failures: list[Exception] = []

        async def turn(tag: bytes) -> int:
            done = 0
            while True:
                taken = await self._connection.call(
                    scripts.load("take_due"),
                    [keys.key(tag, "due"), keys.key(tag, "unsettled"), keys.none(tag)],
                    [now_us, TAKE],
                    bulk=True,
                )
                fault("due.marked")
                mixed = [each[: ids.SIZE] for each in taken]
                names = {keys.named_rule(int(each[ids.SIZE :])) for each in taken}
                try:
                    await self._settle_all(env, mixed, names, now_us, bulk=True)
                except Unavailable:
                    raise
                except Exception as ex:  # noqa: BLE001  (raised in the end; they stay unsettled)
                    failures.append(ex)
                done += len(taken)
                if len(taken) < TAKE:
                    return done
                if time.monotonic() >= until:
                    self.interrupted.add(env.number)
                    return done

        turned = await all_done_of(*map(turn, env.partitions))
        if failures:
            raise failures[0]
        return sum(turned)

    async def preview(self, env: Environment, rule: Rule, number: int | None) -> Preview:
        """Say who would join, leave and stay in a dynamic group (None: an empty one) by a rule.

        Everybody about whom there is any fact is looked at once, as it is at that time; nothing is
        written. Samples are the first ones in the order of members. Bulk work in bounded steps,
        all partitions side by side.
        """
        return await self._previews.preview(env, rule, number, self.clock())

    async def explain(
        self, env: Environment, rule: Rule, id16: bytes
    ) -> tuple[bool, list[LeafResult]]:
        """Say whether a profile is a member of the rule's group, and what each leaf comes to.

        Erasing where the profile is being erased. One round trip.
        """
        return await self._previews.explain(env, rule, id16, self.clock())

    async def _settle_all(
        self,
        env: Environment,
        mixed: Iterable[bytes],
        names: Collection[bytes],
        now_us: int,
        *,
        bulk: bool,
    ) -> None:
        """Settle profiles; no rule is evaluated as of before `now_us`."""
        todo = list(dict.fromkeys(mixed))
        bulk = bulk or len(todo) > BULK

        async def settle(book: Book, left: list[bytes]) -> list[bytes]:
            now = max(self.clock(), now_us)
            return await self._settle(env, book, left, names, now, bulk=bulk)

        for start in range(0, len(todo), TOGETHER):
            await self._until_done(env, todo[start : start + TOGETHER], settle)

    async def _walk(self, env: Environment, todo: list[bytes], numbers: list[int]) -> None:
        async def walk(book: Book, left: list[bytes]) -> list[bytes]:
            # One that is gone from the book was deleted since: its members are swept.
            rules = book.rules_by_number
            plan = self._plan(env, book, tuple(each for each in numbers if each in rules))
            again, _ = await self._follow(env, plan, left, self.clock(), whole=True, bulk=True)
            return again

        left = await self._until_done(env, todo, walk)
        for tag, within in env.by_home(left).items():
            await self._connection.call(
                scripts.load("defer_rules"),
                [keys.key(tag, "unsettled"), keys.none(tag)],
                [_now_us(), len(within), *within, *numbers],
                bulk=True,
            )

    async def _until_done(self, env: Environment, left: list[bytes], step: Step) -> list[bytes]:
        """Repeat a step on what it leaves, with rules as they are then; what is left in the end."""
        book = await self._definitions.book(env)
        failure: Stale | None = None
        for attempt in range(TRIES):
            if attempt > 1:
                await asyncio.sleep(random.random() * PAUSE_SECONDS)  # noqa: S311
            failure = None
            try:
                left = await step(book, left)
            except Stale as error:
                failure = error
                await self._definitions.reload(env, int(str(error)))
                book = await self._definitions.book(env)
            if not left:
                return left
        if failure is not None:
            raise restless() from failure
        return left

    async def _settle(
        self,
        env: Environment,
        book: Book,
        todo: list[bytes],
        names: Collection[bytes],
        now_us: int,
        *,
        bulk: bool,
    ) -> list[bytes]:
        """Settle profiles once; give those that have to be begun anew."""
        hinted = self._plan(env, book, tuple(each.number for each in book.touched(names)))
        if hinted.cost > HINT:
            hinted = self._plan(env, book, ())
        again, others = await self._follow(env, hinted, todo, now_us, whole=False, bulk=bulk)
        if others:
            parts = await all_done_of(
                *(
                    self._follow(
                        env, self._plan(env, book, numbers), some, now_us, whole=False, bulk=bulk
                    )
                    for numbers, some in others.items()
                )
            )
            for more, changed in parts:
                again += more
                again += [mixed for some in changed.values() for mixed in some]
        return again

    async def _follow(
        self,
        env: Environment,
        plan: Plan,
        todo: list[bytes],
        now_us: int,
        *,
        whole: bool,
        bulk: bool,
    ) -> tuple[list[bytes], dict[tuple[int, ...], list[bytes]]]:
        """Have profiles follow what changed of them, or (`whole`) all rules of the plan.

        Gives those that have to be begun anew, and those of which something changed that touches
        other rules than these, by the rules that it touches.
        """
        found = await self._subjects.read(env, plan, todo, bulk=bulk)
        fault("settle.read")
        touched = _Touched(plan)
        others: dict[tuple[int, ...], list[bytes]] = {}
        rows = []
        turn = Turn()
        for mixed, facts in found.items():
            if facts is None:
                continue
            if whole:
                rules: Sequence[Rule] = plan.rules
                names = [each for each in facts.changed if touched.covers(each)]
            else:
                names = facts.changed
                rules = touched.by(names)
                if not touched.all_covered(names):
                    others.setdefault(tuple(each.number for each in rules), []).append(mixed)
                    continue
            verdicts: list[tuple[Rule, Verdict]] = []
            if facts.fact and rules:
                subject = facts.subject(plan)
                for rule in rules:
                    verdict = rule.evaluate(subject, now_us)
                    if verdict.turns_at_us is not None and verdict.turns_at_us <= now_us:
                        verdict = verdict._replace(turns_at_us=now_us + 1)
                    verdicts.append((rule, verdict))
                    self.evaluated += 1
                    if turn.is_over():
                        await asyncio.sleep(0)
            else:
                verdicts = [(rule, _OUTSIDE) for rule in rules]
            row = row_of(mixed, facts, verdicts, names)
            if row is not None:
                rows.append(row)
        return await self._write(env, plan, rows, now_us, bulk=bulk), others

    async def _write(
        self, env: Environment, plan: Plan, rows: list[Row], now_us: int, *, bulk: bool
    ) -> list[bytes]:
        """Write what follows; give the profiles whose facts changed meanwhile."""
        again: set[bytes] = set()

        version, *looked_at = plan.writing
        head = [version, now_us, now_us // HOUR_US, TURNOVER_SECONDS, *looked_at]

        async def write(tag: bytes, adds: bool, chunk: list[Row]) -> None:
            kinds = ("rules", "state", "erasing", "unsettled", "due")
            letters = await self._connection.call(
                scripts.load("settle_memberships" if adds else "end_memberships"),
                [*(keys.key(tag, kind) for kind in kinds), keys.none(tag)],
                [*head, *chain.from_iterable(row.parts[part] for row in chunk)],
                bulk=bulk,
            )
            for row, letter in zip(chunk, letters, strict=True):
                if letter == _CHANGED:
                    again.add(row.mixed)

        part = 0
        while rows:
            # The next part of a profile only after the last one: it may be begun anew in between.
            chunks = cut(env, rows, part, WRITE, WRITE_BYTES)
            await all_done_of(*(write(*each) for each in chunks))
            part += 1
            rows = [row for row in rows if len(row.parts) > part and row.mixed not in again]
            fault("settle.written")
        return list(again)

    def _plan(self, env: Environment, book: Book, numbers: tuple[int, ...]) -> Plan:
        """Say what has to be read for rules; the latest plans of this book are remembered."""
        held = self._plans.get(env.rules_home)
        if held is None or held.book is not book:
            # PERF: a thousand plans of a thousand earlier books would keep 700 MB of these.
            self._plans.pop(env.rules_home, None)
            if len(self._plans) >= BOOKS:
                del self._plans[next(iter(self._plans))]
            held = self._plans[env.rules_home] = _Plans(book, {})
        plan = held.by_numbers.get(numbers)
        if plan is None:
            if len(held.by_numbers) >= PLANS:
                del held.by_numbers[next(iter(held.by_numbers))]
            rules = [book.rules_by_number[each] for each in numbers]
            plan = held.by_numbers[numbers] = planned(book, rules)
        return plan


class _Plans(NamedTuple):
    """Plans of one book, by the numbers of their rules."""

    book: Book
    by_numbers: dict[tuple[int, ...], Plan]


class _Touched:
    """Which rules changes touch, remembered for many profiles of the same ones."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._covers: dict[bytes, bool] = {}
        self._rules: dict[frozenset[bytes], list[Rule]] = {}

    def covers(self, name: bytes) -> bool:
        """Whether all rules that a change touches are in the plan."""
        covered = self._covers.get(name)
        if covered is None:
            numbers = {rule.number for rule in self._plan.book.touched((name,))}
            covered = self._covers[name] = numbers <= self._plan.numbers
        return covered

    def all_covered(self, names: Iterable[bytes]) -> bool:
        return all(map(self.covers, names))

    def by(self, names: Collection[bytes]) -> list[Rule]:
        """Give the rules that changes touch."""
        those = frozenset(names)
        rules = self._rules.get(those)
        if rules is None:
            rules = self._rules[those] = self._plan.book.touched(those)
        return rules


def _has_rules(env: Environment) -> bool:
    """Whether there may be dynamic groups: only in production."""
    return env.directory == env.rules_home


def _now_us() -> int:
    return time.time_ns() // 1000
