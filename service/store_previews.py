"""What a rule would make of profiles: who would join and leave a group by it, and why."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from service import ids, keys, scripts
from service.errors import Erasing, Stale
from service.rows import all_done_of, restless
from service.store_subjects import Turn
from service.subjects import planned

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from service.connection import Connection
    from service.environment import Environment
    from service.rules import LeafResult, Rule
    from service.store_definitions import DefinitionStore
    from service.store_subjects import SubjectStore
    from service.subjects import Facts, Plan

PAGE = 1000
"""Ids of profiles that one script lists."""
TOGETHER = 200
"""Profiles that are read together."""
SAMPLES = 20
TRIES = 20
"""How often profiles are read anew because the rules changed."""


class Preview(NamedTuple):
    """Who would be a member of a group by a rule, as against who is; samples are ids."""

    joining: int
    leaving: int
    staying: int
    joining_samples: tuple[bytes, ...]
    leaving_samples: tuple[bytes, ...]


@dataclass(slots=True)
class _Moves:
    """What was found in a partition: how many, and mixed ids of the first ones."""

    staying: int = 0
    counts: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})
    samples: dict[bool, list[bytes]] = field(default_factory=lambda: {True: [], False: []})

    def note(self, mixed: bytes, *, holds: bool, is_member: bool) -> None:
        if holds != is_member:
            self.counts[holds] += 1
            if len(self.samples[holds]) < SAMPLES:
                self.samples[holds].append(mixed)
        elif holds:
            self.staying += 1


class PreviewStore:
    """Previews and explanations. Every method may raise Unavailable."""

    def __init__(
        self, connection: Connection, definitions: DefinitionStore, subjects: SubjectStore
    ) -> None:
        """Take the open connection, who knows the rules, and who reads facts."""
        self._connection = connection
        self._definitions = definitions
        self._subjects = subjects

    async def preview(
        self, env: Environment, rule: Rule, number: int | None, now_us: int
    ) -> Preview:
        """Say who would join, leave and stay in a group, as `SettlingStore.preview` does."""
        followed = () if number is None else (number,)
        parts = await all_done_of(
            *(self._preview(env, tag, rule, followed, now_us) for tag in env.partitions)
        )

        def samples(*, joining: bool) -> tuple[bytes, ...]:
            first = [mixed for part in parts for mixed in part.samples[joining]][:SAMPLES]
            return tuple(map(env.mixer.unmix, first))

        return Preview(
            sum(part.counts[True] for part in parts),
            sum(part.counts[False] for part in parts),
            sum(part.staying for part in parts),
            samples(joining=True),
            samples(joining=False),
        )

    async def explain(
        self, env: Environment, rule: Rule, id16: bytes, now_us: int
    ) -> tuple[bool, list[LeafResult]]:
        """Say who is a member and why, as `SettlingStore.explain` does."""
        mixed = env.mixer.mix(id16)
        plan, found = await self._read(env, rule, (rule.number,), [mixed], bulk=False)
        facts = found[mixed]
        if facts is None:
            message = "The profile is being erased: try again."
            raise Erasing(message)
        return rule.number in facts.member, rule.explain(facts.subject(plan), now_us)

    async def _preview(
        self, env: Environment, tag: bytes, rule: Rule, followed: Sequence[int], now_us: int
    ) -> _Moves:
        moves = _Moves()
        kinds = ("state", "count", "shape", "erasing")
        declared = [*(keys.key(tag, kind) for kind in kinds), keys.none(tag)]
        turn = Turn()
        bound = b""
        while True:
            _, bound, packed, _ = await self._connection.call(
                scripts.load("list_member_ids"), declared, [0, bound, PAGE], bulk=True
            )
            page = ids.split(packed)
            for start in range(0, len(page), TOGETHER):
                some = page[start : start + TOGETHER]
                plan, found = await self._read(env, rule, followed, some, bulk=True)
                for mixed, facts in found.items():
                    # Who was erased since the page was listed is nobody any more.
                    if facts is not None and facts.fact:
                        holds = rule.evaluate(facts.subject(plan), now_us).holds
                        moves.note(mixed, holds=holds, is_member=bool(facts.member))
                        if turn.is_over():
                            await asyncio.sleep(0)
            if not bound:
                return moves

    async def _read(
        self,
        env: Environment,
        rule: Rule,
        followed: Sequence[int],
        mixed: list[bytes],
        *,
        bulk: bool,
    ) -> tuple[Plan, Mapping[bytes, Facts | None]]:
        """Read what a rule, which may be in no book, has to know; by the definitions as of now."""
        book = await self._definitions.book(env)
        failure: Stale | None = None
        for _ in range(TRIES):
            plan = planned(book, [rule], followed)
            try:
                return plan, await self._subjects.read(env, plan, mixed, bulk=bulk)
            except Stale as error:
                failure = error
                await self._definitions.reload(env, int(str(error)))
                book = await self._definitions.book(env)
        raise restless() from failure
