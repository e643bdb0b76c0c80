"""Books in the store: rules bound to the trees of dynamic groups, and telling partitions of them.

The rules of an application say which groups are dynamic; their trees stand in the documents of the
groups. A tree fits only where it came with the version that the rules say, so a book is never put
together from two versions. Which rules are in force is not decided here: `DefinitionStore` is.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, NamedTuple

from service import keys, scripts
from service.errors import Invalid, Unavailable
from service.rows import in_steps
from service.rules import Book, Rule, parse_tree
from service.store_group_directory import all_done

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.connection import Connection
    from service.environment import Environment
    from service.grouping import Rules
    from service.groups import Group
    from service.store_group_directory import GroupDirectory

TREES = 150
"""Documents with trees that are read before others have a turn."""
BOUND = 20
"""Trees that are bound before others have a turn."""
NAMED = 1000
"""Names that one script tells a partition."""
COPIES = 1000
"""Environments whose books a process remembers."""
LOST = -2
"""What `tell` gives where a partition knows rules that the directory has lost."""
TRIES = 20
"""How often telling a partition in several scripts begins anew."""

log = logging.getLogger(__name__)


class _Told(NamedTuple):
    """What the partitions of an environment were told last, as far as this process knows."""

    version: int
    named: frozenset[bytes]


class BookStore:
    """Books of environments. Every method may raise Unavailable."""

    def __init__(self, connection: Connection, groups: GroupDirectory) -> None:
        """Take the open connection, and who reads documents of groups."""
        self._connection = connection
        self._groups = groups
        self._books: dict[bytes, Book] = {}
        self._told: dict[bytes, _Told] = {}
        self._binding: dict[bytes, asyncio.Lock] = {}

    def held(self, env: Environment, rules: Rules) -> Book | None:
        """Give the book of just these rules, if this process has it: no round trip."""
        book = self._books.get(env.directory)
        return book if book is not None and book.rules is rules else None

    async def bound(self, env: Environment, rules: Rules, *, damaged: bool = False) -> Book | None:
        """Give the book of these rules; None where documents do not fit: the rules changed.

        What is known of the same version is not read again. Where whoever asks found that the rules
        did not change (`damaged`), what does not fit is left out, and logged: one group that is
        damaged must not keep the others from theirs.
        """
        lock = self._binding.setdefault(env.directory, asyncio.Lock())
        async with lock:
            book = self.held(env, rules)
            if book is None:
                trees = await self._trees(env, rules, damaged=damaged)
                if trees is None:
                    return None
                book = Book(rules, trees)
                if env.directory not in self._books and len(self._books) >= COPIES:
                    oldest = next(iter(self._books))
                    del self._books[oldest]
                    self._told.pop(oldest, None)
                    self._binding.pop(oldest, None)
                self._books[env.directory] = book
        return book

    async def _trees(
        self, env: Environment, rules: Rules, *, damaged: bool
    ) -> dict[int, Rule] | None:
        if env.directory != env.rules_home:
            return {}
        before = self._books.get(env.directory)
        known = {} if before is None else before.rules_by_number
        trees: dict[int, Rule] = {}
        wanted: dict[int, int] = {}
        for each in rules.dynamic:
            rule = known.get(each.number)
            if rule is not None and rule.version == each.version:
                trees[each.number] = rule
            else:
                wanted[each.number] = each.version
        numbers = list(wanted)
        for start in range(0, len(numbers), TREES):
            part = numbers[start : start + TREES]
            groups = await self._groups.read_groups(env, part, cached=False)
            for at, number in enumerate(part):
                rule = _rule(groups.get(number), wanted[number])
                if rule is not None:
                    trees[number] = rule
                elif not damaged:
                    return None
                else:
                    log.error("dynamic group %d of %s has no tree that fits", number, env.client_id)
                if at % BOUND == BOUND - 1:
                    await asyncio.sleep(0)
        return trees

    async def tell(
        self, env: Environment, rules: Rules, named: frozenset[bytes], *, afresh: bool = False
    ) -> int:
        """Tell every partition; give the highest version that one of them knows, or LOST.

        Partitions that can be reached know it, also where another one raised Unavailable. Where
        somebody may have died in the midst of it (`afresh`), what that left is taken out, too.
        """
        before = None if afresh else self._told.get(env.directory)
        known = await all_done(*(self._tell(tag, rules, named, before) for tag in env.partitions))
        highest = LOST if LOST in known else max(known)
        if highest == rules.version:
            self._told[env.directory] = _Told(rules.version, named)
        return highest

    async def _tell(
        self, tag: bytes, rules: Rules, named: frozenset[bytes], before: _Told | None
    ) -> int:
        if before is not None and before.version < rules.version:
            added, dropped = named - before.named, before.named - named
            if len(added) + len(dropped) <= NAMED:
                # PERF: the thousandth group then costs a partition what the first one did.
                known = await self._install(tag, rules, before.version, added, dropped)
                if known >= rules.version or known == LOST:
                    return known
        if len(named) <= NAMED:
            return await self._install(tag, rules, "all", named)
        for _ in range(TRIES):
            known = await self._add_named(tag, rules.version, sorted(named))
            if known < 0:
                continue
            if known < rules.version:
                known = await self._install(tag, rules, "added")
            if known == rules.version:
                await self._drop_named(tag, rules.version, named)
            if known >= 0 or known == LOST:
                return known
        message = "A partition is being told of rules by too many others at once."
        raise Unavailable(message)

    async def _install(
        self,
        tag: bytes,
        rules: Rules,
        base: str | int,
        added: frozenset[bytes] = frozenset(),
        dropped: frozenset[bytes] = frozenset(),
    ) -> int:
        watched = rules.watched
        arguments: list[bytes | str | int] = [rules.version, base, len(watched), len(added)]
        arguments += [rules.before, *watched, *sorted(added), *sorted(dropped)]
        return int(
            await self._connection.call(
                scripts.load("install_rules"),
                [*(keys.key(tag, kind) for kind in ("rules", "watch", "named")), keys.none(tag)],
                arguments,
            )
        )

    async def _add_named(self, tag: bytes, version: int, names: Sequence[bytes]) -> int:
        """Add all names before the rules; the version that the partition knows, -1: begin anew."""
        known = 0
        for at, part in enumerate(in_steps(names, NAMED)):
            known = int(
                await self._connection.call(
                    scripts.load("add_named"),
                    [keys.key(tag, "rules"), keys.key(tag, "named"), keys.none(tag)],
                    [version, int(at == 0), *part],
                )
            )
            if known < 0 or known >= version:
                break
        return known

    async def _drop_named(self, tag: bytes, version: int, named: frozenset[bytes]) -> None:
        """Take out what is named no more: harmless while it is there, but more and more."""
        key, cursor = keys.key(tag, "named"), b"0"
        while True:
            cursor, page = await self._connection.command(key, "SSCAN", key, cursor, "COUNT", NAMED)
            for part in in_steps([name for name in page if name not in named], NAMED):
                await self._connection.call(
                    scripts.load("drop_named"),
                    [keys.key(tag, "rules"), key, keys.none(tag)],
                    [version, *part],
                )
            if cursor == b"0":
                return


def _rule(group: Group | None, version: int) -> Rule | None:
    """Bind the tree of a group, if it came with this version of the rules."""
    if group is None or not group.is_dynamic or group.rules_version != version:
        return None
    leaves = {gid: (gid, number) for gid, number in group.leaf_groups.items()}
    try:
        return parse_tree(group.rule_tree).bound(group.number, version, leaves)
    except (Invalid, KeyError):
        log.exception("the rule tree of group %d cannot be read", group.number)
        return None
