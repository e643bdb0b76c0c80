"""Dynamic groups in the store: what goes with the rules of the application, and how far they are.

Creating one, changing its tree and deleting it change its document and the application's rules in
one directory script, both or neither: `GroupStore` runs it, with what is made ready here. After it
every partition is told, before it is answered. What follows in the partitions is `settling`'s; the
job that finds the members of a new tree is queued by the same script.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from service import keys, scripts
from service.errors import Conflict, Invalid, NotFound
from service.faults import fault
from service.grouping import Ruled, Rules
from service.groups import DYNAMIC_TYPE, Group, GroupDocument, GroupQuery, encode_tree
from service.rows import in_steps
from service.store_group_directory import all_done, id16
from service.store_jobs import new_job

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from service.connection import Connection
    from service.environment import Application, Environment
    from service.registry import Registry
    from service.rules import Rule, Tree
    from service.store_definitions import DefinitionStore
    from service.store_group_directory import GroupDirectory
    from service.store_jobs import Job, JobStore

FIELD = "rule_tree"
NAMED_AS = 5
"""Dynamic groups that are named to who deletes a group that their trees name."""
LEAVES = 32
"""Groups of a tree that are looked for at the same time."""
TURNED = 100
"""Groups whose turnover of a day one script reads: 0.9 ms."""
COUNTED = 1000
"""Groups whose members, or whose state, one command counts or reads."""
MOST = 5_000
"""Dynamic groups that settings allow at most."""
HOURS = 24
_HOUR_US = 3_600_000_000


class Ruling(NamedTuple):
    """What goes with a change of a dynamic group: its document then, and the application's rules.

    `written` are both as they are stored: as read, and as they become.
    """

    document: GroupDocument
    application: Application
    rules: Rules
    written: tuple[bytes, bytes]
    leaves: tuple[bytes | int, ...] = ()

    @property
    def job(self) -> tuple[str, bytes]:
        """The job that finds the members, to be queued: its id, and it as it is stored."""
        job = new_job("rules", _now_us(), whole=False)
        return job.id, msgspec.json.encode(job)


class Status(msgspec.Struct, frozen=True):
    """How far a group is whose members are being found: `done` of `total` profiles.

    A group that is ready is so of all profiles that there are. A query that was saved as a group
    `failed` where not all could be added; its job says why, and is remembered for a while.
    """

    state: Literal["building", "ready", "failed"]
    done: int
    total: int


class Audience(msgspec.Struct, frozen=True, kw_only=True):
    """A dynamic group with what is said of an audience: `added` and `dropped` in about a day."""

    group: Group
    size: int
    added: int
    dropped: int
    status: Status


class DynamicStore:
    """What there is to dynamic groups beside their members. Methods may raise Unavailable."""

    def __init__(
        self,
        connection: Connection,
        groups: GroupDirectory,
        definitions: DefinitionStore,
        registry: Registry,
        jobs: JobStore,
    ) -> None:
        """Take the open connection, and who knows groups, rules, settings and jobs."""
        self._connection = connection
        self._groups = groups
        self._definitions = definitions
        self._registry = registry
        self._jobs = jobs

    # What goes with a change

    async def creating(
        self, env: Environment, document: GroupDocument, number: int, tree: Tree
    ) -> Ruling:
        """Make ready what goes with a new dynamic group.

        Invalid outside of production, and where the tree names a group that there is not, or a
        dynamic one; one more than the application's settings allow is a Conflict.
        """
        application = await self._application(env)
        leaves = await self._leaves(env, tree)
        raw, rules = await self._definitions.prepared(application)
        most = application.dynamic_groups
        if len(rules.dynamic) >= most:
            message = f"An application has at most {most:,} dynamic groups: that is a setting."
            raise Conflict(message)
        return _ruled(
            application, (raw, rules), document, tree.bound(number, _above(rules), leaves), leaves
        )

    async def changing(
        self, env: Environment, old: Group, document: GroupDocument, tree: Tree
    ) -> Ruling | None:
        """Make ready what goes with another tree of a dynamic group, as `creating` does.

        None where it is the tree that the group has: nothing follows from it, but every partition
        knows that one when this returns.
        """
        application = await self._application(env)
        leaves = await self._leaves(env, tree)
        prepared = await self._definitions.prepared(application)
        rule = tree.bound(old.number, _above(prepared[1]), leaves)
        ruling = _ruled(application, prepared, document, rule, leaves)
        if not _is_same(ruling.document, old):
            return ruling
        key = keys.key(env.rules_home, "installing")
        if await self._connection.command(key, "GET", key) is not None:
            # Whoever changed it may have died before all partitions knew.
            await self._definitions.install(application)
        return None

    async def deleting(self, env: Environment, group: Group) -> Ruling:
        """Make ready what goes with the end of a dynamic group."""
        application = await self._application(env)
        raw, old = await self._definitions.prepared(application)
        left = tuple(each for each in old.dynamic if each.number != group.number)
        rules = replace(old, version=_above(old), before=old.version, dynamic=left)
        return Ruling(group, application, rules, (raw, msgspec.json.encode(rules)))

    async def in_force(self, ruling: Ruling) -> None:
        """Tell every partition of rules that were just written. The worker makes up for a death."""
        fault("dynamic.written")
        await self._definitions.replaced(ruling.application, ruling.rules)
        fault("dynamic.installed")

    async def bound(self, env: Environment, tree: Tree, number: int = 0) -> Rule:
        """Bind a tree to the groups that it names, as if it were that of a dynamic group.

        For who asks what would follow from it; refuses what `creating` refuses.
        """
        self._require_production(env)
        return tree.bound(number, 0, await self._leaves(env, tree))

    async def unnamed(self, env: Environment, group: Group, *, again: bool) -> int:
        """Give the version of the rules that do not name a static group, for who deletes it.

        A Conflict where a rule tree names it. `again`: the directory had another version. No round
        trip where this process knows the rules, and they do not name it.
        """
        if env.directory != env.rules_home:
            # No rule names a group of development, and its directory keeps no rules.
            return 0
        definitions = self._definitions
        name = keys.named_group(group.number)
        if again or (await definitions.book(env)).touched([name]):
            await definitions.reread(env)
        book = await definitions.book(env)
        naming = [rule.number for rule in book.touched([name])]
        if not naming:
            return book.rules.version
        named = await self._groups.read_groups(env, naming[:NAMED_AS])
        shown = ", ".join(each.id for each in named.values())
        if len(naming) > NAMED_AS:
            shown = f"{shown} and {len(naming) - NAMED_AS:,} more"
        message = (
            "The group cannot be deleted, for rule trees of dynamic groups name it. Delete those "
            f"first, or change their trees: {shown}."
        )
        raise Conflict(message)

    async def _application(self, env: Environment) -> Application:
        self._require_production(env)
        found = await self._registry.application(env.client_id)
        if found is None:
            raise NotFound
        return found

    def _require_production(self, env: Environment) -> None:
        if env.directory != env.rules_home:
            message = "Dynamic groups are in production alone."
            raise Invalid(message, "membership_type")

    async def _leaves(self, env: Environment, tree: Tree) -> dict[str, tuple[str, int]]:
        """Find the groups that a tree names: as given -> id and number."""
        found: dict[str, tuple[str, int]] = {}
        waiting = iter(tree.groups)

        async def find() -> None:
            for gid in waiting:
                try:
                    group = await self._groups.get_group(env, gid, include_inactive=True)
                except NotFound:
                    message = f"There is no group {gid!r} - at `{tree.places[gid]}`"
                    raise Invalid(message, FIELD) from None
                if group.is_dynamic:
                    message = (
                        f"The group {gid!r} is a dynamic one, and a rule tree names static ones - "
                        f"at `{tree.places[gid]}`"
                    )
                    raise Invalid(message, FIELD)
                found[gid] = group.id, group.number

        await all_done(*(find() for _ in range(min(LEAVES, len(tree.groups)))))
        return found

    # How far they are, and what became of them

    async def statuses(
        self, application: Application, groups: Sequence[Group]
    ) -> dict[int, Status]:
        """Tell how far groups are, by number: dynamic ones, and those that a query is saved as.

        While a job over everything waits or runs, as after a change of definitions, all dynamic
        ones are building. One that is building is told of by the job that runs for it; while that
        waits, nothing is done. Two round trips where one is building, three where no job runs for
        it, else one; all partitions are asked at once.
        """
        env = application.production
        ruled = [group.number for group in groups if group.is_dynamic]
        built, counts = await asyncio.gather(self._built(env, ruled), self._count(env, [0]))
        profiles = counts[0]
        ready = _ready(groups, built)
        jobs: list[Job] = []
        if any(group.saved_query is not None for group in groups):
            jobs = await self._jobs.list_jobs(application)
        elif len(ready) < len(groups):
            jobs = await self._jobs.open_jobs(application)
        if any(each.number not in ready and not _runs_for(each, jobs) for each in groups):
            # Its job may have ended since we looked: then it is built, and not at its beginning.
            ready = _ready(groups, await self._built(env, ruled))
        found = {}
        for group in groups:
            status = Status("ready", profiles, profiles)
            if group.number not in ready:
                status = _progress(group, jobs, profiles) or status
            found[group.number] = status
        return found

    async def audiences(self, application: Application) -> list[Audience]:
        """Give all active dynamic groups, oldest first, with what is said of an audience.

        Round trips: one for each 150 groups, then one for all that is counted.
        """
        env = application.production
        query = GroupQuery(membership_type=DYNAMIC_TYPE)
        groups = (await self._groups.list_groups(env, query, None, MOST)).rows
        numbers = [group.number for group in groups]
        sizes, turned, statuses = await asyncio.gather(
            self._count(env, numbers),
            self.turnover(env, numbers),
            self.statuses(application, groups),
        )
        return [
            Audience(
                group=group,
                size=sizes[group.number],
                added=turned[group.number][0],
                dropped=turned[group.number][1],
                status=statuses[group.number],
            )
            for group in groups
        ]

    async def turnover(
        self, env: Environment, numbers: Sequence[int]
    ) -> dict[int, tuple[int, int]]:
        """Tell how many members dynamic groups gained and lost: in this hour and the 23 before it.

        Members that a new rule tree brings count as well, and those who come and go count in both.
        """
        now = _now_us() // _HOUR_US
        hours = range(now, now - HOURS, -1)
        return {
            number: (gained, lost)
            for part in in_steps(numbers, TURNED)
            for number, gained, lost in await self._turned(env, hours, part)
        }

    async def _turned(
        self, env: Environment, hours: Iterable[int], numbers: Sequence[int]
    ) -> list[tuple[int, int, int]]:
        script = scripts.load("read_turnover")
        sums = await all_done(
            *(
                self._connection.call(
                    script,
                    [*(keys.turnover(tag, hour) for hour in hours), keys.none(tag)],
                    list(numbers),
                )
                for tag in env.partitions
            )
        )
        turned = [sum(each) for each in zip(*sums, strict=True)]
        return list(zip(numbers, turned[::2], turned[1::2], strict=True))

    async def _count(self, env: Environment, numbers: Sequence[int]) -> dict[int, int]:
        """Count the members of groups, whether they are active or not; 0: all profiles."""
        script = scripts.load("count_members")
        found = dict.fromkeys(numbers, 0)
        for part in in_steps(numbers, COUNTED):
            counts = await all_done(
                *(
                    self._connection.call(
                        script, [keys.key(tag, "count"), keys.none(tag)], list(part)
                    )
                    for tag in env.partitions
                )
            )
            for held in counts:
                for number, count in zip(part, held, strict=True):
                    found[number] += int(count or 0)
        return found

    async def _built(self, env: Environment, numbers: Sequence[int]) -> dict[int | bytes, int]:
        """Give the version of the rules by which groups were built; 0: they were not yet.

        With which job over everything was wanted last (`wanted`), and which was done (`whole`).
        """
        key = keys.key(env.rules_home, "built")
        found: dict[int | bytes, int] = {}
        asked: list[int | bytes] = [b"wanted", b"whole", *numbers]
        for part in in_steps(asked, COUNTED):
            held = await self._connection.command(key, "HMGET", key, *part)
            found |= {number: int(each or 0) for number, each in zip(part, held, strict=True)}
        return found


def _ruled(
    application: Application,
    prepared: tuple[bytes, Rules],
    document: GroupDocument,
    rule: Rule,
    leaves: Mapping[str, tuple[str, int]],
) -> Ruling:
    raw, old = prepared
    groups = dict(leaves.values())
    document = replace(
        document, rule_tree=rule.shown, leaf_groups=groups, rules_version=rule.version
    )
    others = [each for each in old.dynamic if each.number != rule.number]
    ruled = sorted([*others, Ruled(rule.number, rule.version)], key=lambda each: each.number)
    rules = replace(old, version=rule.version, before=old.version, dynamic=tuple(ruled))
    flat = [part for gid, number in groups.items() for part in (id16(gid), number)]
    return Ruling(document, application, rules, (raw, msgspec.json.encode(rules)), tuple(flat))


def _ready(groups: Sequence[Group], built: Mapping[bytes | int, int]) -> set[int]:
    """Give the dynamic groups that are built."""
    if built[b"wanted"] > built[b"whole"]:
        # Something changed that any rule may follow, such as a definition.
        return set()
    return {
        group.number
        for group in groups
        if group.is_dynamic and built[group.number] == group.rules_version
    }


def _runs_for(group: Group, jobs: Sequence[Job]) -> bool:
    """Whether a job finds members of a group, or it is none whose members are found so."""
    return not group.is_dynamic or any(
        each.builds(group.number, group.rules_version) for each in jobs
    )


def _progress(group: Group, jobs: Sequence[Job], profiles: int) -> Status | None:
    """Tell how far a group is that may be building; None where a query was saved as it."""
    if group.is_dynamic:
        # A tree that came after the job was decided on waits for the next one.
        job = next((each for each in jobs if each.builds(group.number, group.rules_version)), None)
        return Status("building", 0, profiles) if job is None else _status(job, profiles)
    job = next((each for each in jobs if each.is_save and each.group == group.number), None)
    if job is None or job.state == "done":
        return None
    return Status("failed", job.done, job.total) if job.is_over else _status(job, profiles)


def _status(job: Job, profiles: int) -> Status:
    return Status("building", job.done, job.total or profiles)


def _is_same(document: GroupDocument, group: Group) -> bool:
    """Whether the tree of a document is that of a group: the same bytes, and the same groups."""
    trees = [encode_tree(each.rule_tree) for each in (document, group)]
    return trees[0] == trees[1] and document.leaf_groups == group.leaf_groups


def _above(rules: Rules) -> int:
    return max(rules.version + 1, _now_us())


def _now_us() -> int:
    return time.time_ns() // 1000
