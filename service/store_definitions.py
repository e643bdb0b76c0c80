"""Group definitions in the store: the rules of an application, and telling the partitions of them.

All definitions of an application, and which groups are dynamic, are one document in production's
directory, for both environments. A change is one directory script, version checked, which leaves
word of it (`installing`) and queues the job that walks all profiles; then every partition is told
the version, which attributes to watch and what rule trees name, and only then is it answered. The
worker completes what a dead process left. Scripts that depend on rules are given the caller's
version and refuse another one than their partition knows, so no answer depends on what a copy here
holds.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from service import keys, scripts
from service.errors import NotFound, Stale, Unavailable, Unprocessable
from service.faults import fault
from service.grouping import Definition, GroupAttribute, Rules
from service.store_books import LOST, BookStore
from service.store_group_directory import all_done
from service.store_jobs import monday_before, new_job

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from service.connection import Connection
    from service.environment import Application, Environment
    from service.registry import Registry
    from service.rules import Book
    from service.store_group_directory import GroupDirectory

    Change = Callable[[Rules, int], tuple[Rules, bool]]

TRIES = 20
"""How often a change is made again after losing against others."""
COPIES = 1000
"""Applications whose rules a process remembers; rules take a few hundred bytes mostly."""
UNKNOWN = "The group definition {!r} was not found."

_RULES = msgspec.json.Decoder(Rules)


class NewDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """A definition to create. `since` of its attributes is set by the store."""

    id: str
    description: str | None = None
    source_user_attribute: str
    attributes: tuple[GroupAttribute, ...] = ()


class DefinitionChanges(msgspec.Struct, frozen=True, kw_only=True):
    """Changes of a definition: what is not given stays, `attributes` replaces all of them."""

    description: str | UnsetType | None = UNSET
    source_user_attribute: str | UnsetType = UNSET
    attributes: tuple[GroupAttribute, ...] | UnsetType = UNSET


class Changed(msgspec.Struct, frozen=True):
    """What a change came to: the rules now, and the job that follows from it, if one does."""

    rules: Rules
    job: str | None


class DefinitionStore:
    """Rules and definitions of applications. Every method may raise Unavailable."""

    def __init__(self, connection: Connection, registry: Registry, groups: GroupDirectory) -> None:
        """Take the open connection, the registry, which knows settings as they are now, and groups.

        Trees of dynamic groups stand in the documents of those.
        """
        self._connection = connection
        self._registry = registry
        self._books = BookStore(connection, groups)
        self._copies: dict[bytes, Rules] = {}

    async def rules(self, env: Environment) -> Rules:
        """Give the rules as this process knows them: no round trip but the first time.

        They may be behind. Give their version to scripts, and `reload` where one says STALE.
        """
        held = self._copies.get(env.rules_home)
        return await self._read_kept(env.rules_home) if held is None else held

    async def book(self, env: Environment) -> Book:
        """Give the rules that `rules` gives, with the rule tree of every dynamic group.

        No round trip where this process has them; of development, and where no group is dynamic,
        there is never one but that of `rules`. It may be behind as `rules` may; after `reload` it
        is of what that gave. Trees that are known already are not read again.
        """
        _, book = await self._fitting(env, await self.rules(env))
        return book

    async def _fitting(self, env: Environment, rules: Rules) -> tuple[Rules, Book]:
        """Give the book of these rules, or of those that there are where they changed meanwhile."""
        for _ in range(TRIES):
            book = self._books.held(env, rules) or await self._books.bound(env, rules)
            if book is not None:
                return rules, book
            fresh = await self._read_kept(env.rules_home)
            if fresh == rules and await self._is_damaged(env, rules):
                book = await self._books.bound(env, fresh, damaged=True)
                if book is not None:
                    return fresh, book
            rules = fresh
        raise _contended()

    async def _is_damaged(self, env: Environment, rules: Rules) -> bool:
        """Tell whether documents do not fit rules that are the directory's, before and after."""
        if await self._books.bound(env, rules) is not None:
            return False
        return await self._read_kept(env.rules_home) == rules

    async def reread(self, env: Environment) -> Rules:
        """Give the rules that the directory has now. One round trip."""
        return await self._read_kept(env.rules_home)

    async def reload(self, env: Environment, seen: int = 0) -> Rules:
        """Give the rules as the directory has them, after a partition was `seen` with others.

        A partition that is behind is told there and then, with all others of the environment. One
        that is ahead means that a failover lost what the directory was told: its version is raised
        above the one seen, and every partition told of what is left; a job is queued, for what
        partitions hold followed from other rules. So it is, too, where one was told what is LOST.
        One round trip, and one to the partitions.
        """
        for _ in range(TRIES):
            raw, rules = await self._read(env.rules_home)
            if seen > rules.version or seen == LOST:
                try:
                    rules = (
                        await self._replace(env, raw, _above(seen), rebuild=True, seen=seen)
                    ).rules
                except Stale:
                    continue
            rules = self._keep(env.rules_home, rules)
            if seen < rules.version:
                seen, rules = await self._tell([env], rules)
            if LOST < seen <= rules.version:
                return rules
        raise _contended()

    async def list_definitions(self, application: Application) -> tuple[Definition, ...]:
        """Give all definitions, oldest first, as the directory has them now."""
        return (await self._read_kept(application.production.rules_home)).definitions

    async def get_definition(self, application: Application, definition_id: str) -> Definition:
        """Give a definition as the directory has it now. NotFound where there is none."""
        rules = await self._read_kept(application.production.rules_home)
        return _found(rules, definition_id)

    async def create_definition(
        self, application: Application, new: NewDefinition, by: str
    ) -> tuple[Definition, str | None]:
        """Create a definition, and give it with the id of the job that groups users by it.

        An id in use, and more definitions or attributes than the application's settings allow, are
        Unprocessable, and nothing changed. In force in every partition when this returns. Two round
        trips, and one to the partitions.
        """

        def change(rules: Rules, version: int) -> tuple[Rules, bool]:
            if rules.definition(new.id) is not None:
                message = f"A group definition with the id {new.id!r} exists already."
                raise Unprocessable(message)
            most = application.definitions_per_workspace
            if len(rules.definitions) >= most:
                message = f"A workspace has at most {_count(most, 'group definition')}."
                raise Unprocessable(message)
            _check_attributes(application, new.attributes)
            now = _now_us()
            made = Definition(
                id=new.id,
                description=new.description,
                source_user_attribute=new.source_user_attribute,
                attributes=_attributes(new.attributes, (), version),
                number=version,
                created_at_us=now,
                created_by=by,
                modified_at_us=now,
                modified_by=by,
            )
            return replace(rules, version=version, definitions=(*rules.definitions, made)), True

        changed = await self._change(application, change)
        return _found(changed.rules, new.id), changed.job

    async def import_definitions(
        self, application: Application, arriving: Sequence[Definition]
    ) -> tuple[Definition, ...]:
        """Bring definitions in from elsewhere, and give all that there are then.

        Who made them, and when, is kept; numbers are new. One whose id is in use is left out, and
        so is one that the application's settings have no room for. In force in every partition
        when this returns; a job follows, as from creating them. Can be repeated.
        """

        def change(rules: Rules, version: int) -> tuple[Rules, bool]:
            made = list(rules.definitions)
            for each in arriving:
                there = any(one.id == each.id for one in made)
                if there or len(made) >= application.definitions_per_workspace:
                    continue
                if len(each.attributes) <= application.attributes_per_definition:
                    # Each has a number of its own, and none is above the version.
                    number = version + len(made)
                    attributes = _attributes(each.attributes, (), number)
                    made.append(replace(each, number=number, attributes=attributes))
            at = max([version, *(each.number for each in made)])
            return replace(rules, version=at, definitions=tuple(made)), True

        held = await self.list_definitions(application)
        if {each.id for each in arriving} <= {each.id for each in held}:
            return held
        return (await self._change(application, change)).rules.definitions

    async def update_definition(
        self, application: Application, definition_id: str, changes: DefinitionChanges, by: str
    ) -> tuple[Definition, str | None]:
        """Change a definition, and give it with the id of the job that follows, if one does.

        Another source makes other instances: the definition gets a new number. An attribute that is
        new or changed its type gets a new `since`. Where neither source nor attributes change,
        nothing follows from it: the version stays. NotFound where there is none; more attributes
        than the settings allow are Unprocessable. In force in every partition when this returns.
        """

        def change(rules: Rules, version: int) -> tuple[Rules, bool]:
            old = _found(rules, definition_id)
            new = _changed(application, old, changes, version, by)
            follows = (old.number, old.attributes) != (new.number, new.attributes)
            definitions = tuple(new if each is old else each for each in rules.definitions)
            at = version if follows else rules.version
            return replace(rules, version=at, definitions=definitions), follows

        changed = await self._change(application, change)
        return _found(changed.rules, definition_id), changed.job

    async def delete_definition(self, application: Application, definition_id: str) -> str | None:
        """Delete a definition, and give the id of the job that takes its instances apart.

        Nobody is shown what was inherited by it when this returns. NotFound where there is none.
        """

        def change(rules: Rules, version: int) -> tuple[Rules, bool]:
            gone = _found(rules, definition_id)
            left = tuple(each for each in rules.definitions if each is not gone)
            return replace(rules, version=version, definitions=left), True

        return (await self._change(application, change, script="delete_definition")).job

    async def follow_settings(self, client_id: str) -> Application | None:
        """Make limit and schedule of the rules what the application's settings say now.

        Gives the application as it is; None where it is gone. For whoever changed settings, and the
        worker, after one who died on the way. Without any rules there is nothing to do: the first
        definition takes the settings as they are then.
        """
        for _ in range(TRIES):
            # In this order: whoever changes settings does that before the rules follow.
            found = await self._registered(client_id)
            if found is None:
                return None
            raw, rules = await self._read(found.production.rules_home)
            found = await self._registered(client_id)
            if found is None or not rules.version or rules == _with_settings(rules, found):
                return found
            settings = found

            def change(old: Rules, version: int, to: Application = settings) -> tuple[Rules, bool]:
                return _with_settings(replace(old, version=version), to), True

            try:
                changed = await self._replace(found.production, raw, change)
            except Stale:
                continue
            await self._installed(found, changed.rules)
            return found
        raise _contended()

    async def install(self, application: Application) -> Rules:
        """Tell every partition of both environments of the rules, and drop the word of it."""
        rules = await self._read_kept(application.production.rules_home)
        return await self._installed(application, rules, afresh=True)

    async def known(self, application: Application, version: int) -> Rules:
        """Give the rules of the version that the directory was just seen with."""
        home = application.production.rules_home
        held = self._copies.get(home)
        if held is not None and held.version == version:
            return held
        return await self._read_kept(home)

    async def follows(self, application: Application, version: int) -> bool:
        """Tell whether the rules of this version say what the application's settings say."""
        rules = await self.known(application, version)
        return rules == _with_settings(rules, application)

    async def _registered(self, client_id: str) -> Application | None:
        found = await self._registry.list_applications()
        return next((each for each in found if each.client_id == client_id), None)

    async def _change(
        self, application: Application, change: Change, *, script: str = "replace_rules"
    ) -> Changed:
        """Change the rules, and tell every partition. `change` is called again after losing."""
        production = application.production
        for _ in range(TRIES):
            raw, rules = await self._read(production.rules_home)
            if not rules.version:
                rules = _with_settings(rules, application)
            try:
                changed = await self._replace(production, raw, change, held=rules, script=script)
            except Stale:
                continue
            await self._installed(application, changed.rules)
            return changed
        raise _contended()

    async def prepared(self, application: Application) -> tuple[bytes, Rules]:
        """Give the rules as the directory has them, and as they are stored, to change them.

        The first dynamic group may be there before any definition: then rules are written that say
        no more than the settings.
        """
        production = application.production
        for _ in range(TRIES):
            raw, rules = await self._read(production.rules_home)
            if rules.version:
                return raw, rules
            rules = _with_settings(rules, application)
            with contextlib.suppress(Stale):
                written = await self._replace(production, raw, _as_it_is, held=rules)
                await self._installed(application, written.rules)
        raise _contended()

    async def replaced(self, application: Application, rules: Rules) -> Rules:
        """Tell every partition of rules that a change of a dynamic group just wrote."""
        kept = self._keep(application.production.rules_home, rules)
        return await self._installed(application, kept)

    async def _replace(
        self,
        env: Environment,
        raw: bytes,
        change: Change,
        *,
        held: Rules | None = None,
        script: str = "replace_rules",
        rebuild: bool = False,
        seen: int = 0,
    ) -> Changed:
        """Write changed rules, if they are still what was read. Stale: they are not.

        A job follows where the change says so, but not in a weekly application: that waits for
        Monday, or for somebody who asks, unless the last definition goes. With `rebuild` no dynamic
        group counts as built any more, and a job follows in any application that has one. `seen` is
        the version of a partition that was found ahead.
        """
        home = env.rules_home
        old = held or decode_rules(raw)
        now = _now_us()
        rules, follows_from_it = change(old, max(old.version + 1, now))
        if rules.version != old.version:
            rules = replace(rules, before=max(old.version, seen))
        # Without definitions there is no Monday's job: what the last one kept goes now.
        last_gone = bool(old.definitions) and not rules.definitions
        rebuild = rebuild and bool(rules.dynamic)
        walks_all = follows_from_it and (last_gone or rebuild or not rules.weekly)
        job = new_job("rules", now) if walks_all else None
        declared = [keys.key(home, kind) for kind in ("rules", "installing", "jobs", "built")]
        arguments: list[bytes | str | int] = [
            raw,
            msgspec.json.encode(rules),
            rules.version,
            "" if job is None else job.id,
            b"" if job is None else msgspec.json.encode(job),
            int(walks_all),
        ]
        if script == "replace_rules":
            declared.append(keys.key(home, "weekly"))
            begins = rules.weekly and not (old.version and old.weekly)
            arguments += [monday_before(now) if begins else "", int(rebuild)]
        waits = await self._connection.call(
            scripts.load(script), [*declared, keys.none(home)], arguments
        )
        fault("define.written")
        return Changed(self._keep(home, rules), waits.decode() or None)

    async def _installed(
        self, application: Application, rules: Rules, *, afresh: bool = False
    ) -> Rules:
        """Tell every partition of rules that were just read or written, and drop the word of it.

        Gives the rules that are in force then: others, where a partition is ahead.
        """
        environments = list(application.environments.values())
        for _ in range(TRIES):
            highest, rules = await self._tell(environments, rules, afresh=afresh)
            if LOST < highest <= rules.version:
                break
            # Somebody was faster, or else a failover lost what the directory had been told.
            rules = await self.reload(application.production, highest)
        else:
            raise _contended()
        fault("define.installed")
        home = application.production.rules_home
        await self._connection.call(
            scripts.load("finish_installing"),
            [keys.key(home, "installing"), keys.none(home)],
            [rules.version],
        )
        return rules

    async def _tell(
        self, environments: Sequence[Environment], rules: Rules, *, afresh: bool = False
    ) -> tuple[int, Rules]:
        """Tell the partitions of environments; give the highest version that one knows, or LOST.

        And the rules that they were told: later ones, where they changed meanwhile. Partitions that
        can be reached know it, also where another one raised Unavailable.
        """
        named: dict[bytes, frozenset[bytes]] = {}
        # Production first: its book may be of later rules, and development's is of any.
        for env in sorted(environments, key=lambda each: each.directory != each.rules_home):
            rules, book = await self._fitting(env, rules)
            named[env.directory] = book.named
        known = await all_done(
            *(
                self._books.tell(env, rules, named[env.directory], afresh=afresh)
                for env in environments
            )
        )
        return LOST if LOST in known else max(known), rules

    async def _read(self, home: bytes) -> tuple[bytes, Rules]:
        key = keys.key(home, "rules")
        raw: bytes = await self._connection.command(key, "GET", key) or b""
        return raw, decode_rules(raw)

    async def _read_kept(self, home: bytes) -> Rules:
        _, rules = await self._read(home)
        return self._keep(home, rules)

    def _keep(self, home: bytes, rules: Rules) -> Rules:
        """Remember rules; gives them, or the same ones that are remembered already."""
        held = self._copies.get(home)
        if held == rules:
            return held
        if held is None and len(self._copies) >= COPIES:
            del self._copies[next(iter(self._copies))]
        self._copies[home] = rules
        return rules


def decode_rules(raw: bytes | None) -> Rules:
    """Give the rules of a stored document; without one, those of an application that had none."""
    return _RULES.decode(raw) if raw else Rules()


def _above(seen: int) -> Change:
    def change(rules: Rules, version: int) -> tuple[Rules, bool]:
        return replace(rules, version=max(version, seen + 1)), True

    return change


def _as_it_is(rules: Rules, version: int) -> tuple[Rules, bool]:
    return replace(rules, version=version), False


def _with_settings(rules: Rules, application: Application) -> Rules:
    return replace(
        rules, limit=application.users_per_group, weekly=application.grouping == "weekly"
    )


def _found(rules: Rules, definition_id: str) -> Definition:
    found = rules.definition(definition_id)
    if found is None:
        raise NotFound(UNKNOWN.format(definition_id[:64]))
    return found


def _changed(
    application: Application, old: Definition, changes: DefinitionChanges, version: int, by: str
) -> Definition:
    given: dict[str, Any] = {
        name: value for name, value in msgspec.structs.asdict(changes).items() if value is not UNSET
    }
    if changes.attributes is not UNSET:
        _check_attributes(application, changes.attributes)
        given["attributes"] = _attributes(changes.attributes, old.attributes, version)
    new = replace(old, **given, modified_at_us=_now_us(), modified_by=by)
    return new if new.source == old.source else replace(new, number=version)


def _attributes(
    given: tuple[GroupAttribute, ...], held: tuple[GroupAttribute, ...], version: int
) -> tuple[GroupAttribute, ...]:
    """Give attributes with the `since` that they have, or, new or of another type, get now."""
    since = {(each.id, each.type): each.since for each in held}
    return tuple(replace(each, since=since.get((each.id, each.type), version)) for each in given)


def _check_attributes(application: Application, given: tuple[GroupAttribute, ...]) -> None:
    most = application.attributes_per_definition
    if len(given) > most:
        message = f"A group definition has at most {_count(most, 'attribute')}."
        raise Unprocessable(message)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _contended() -> Unavailable:
    return Unavailable("The group definitions are being changed by too many others at once.")


def _now_us() -> int:
    return time.time_ns() // 1000
