"""Groups in the store: their documents, ids, indexes and life in a directory.

A change is one directory script, version checked. What has to follow in the partitions (the state
that member scripts consult, the sweep of a deleted group) is named by an intent that the script
leaves; the caller completes it before answering, and the worker completes what a dead process left.
With a dynamic group, or its rule tree, the application's rules change in the same script.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from service import ids, keys, scripts
from service.errors import Conflict, Invalid, Stale
from service.faults import fault
from service.groups import (
    DYNAMIC_TYPE,
    Group,
    GroupChanges,
    GroupDocument,
    NewGroup,
    as_group,
    encode,
    group_indexes,
)
from service.store_group_directory import GroupDirectory, all_done, id16
from service.store_jobs import WAITING, new_save

if TYPE_CHECKING:
    from service.connection import Connection
    from service.environment import Environment
    from service.nearcache import NearCache
    from service.store_dynamic import DynamicStore, Ruling

__all__ = ["GroupStore", "all_done"]

TRIES = 50
"""How often a change is made again after losing against others."""
_KNOWN_BY = ("state", "count", "dynamic")
"""What of a partition says that it knows a group's number."""


class GroupStore(GroupDirectory):
    """Groups of an environment. Every method may raise Unavailable."""

    def __init__(self, connection: Connection, cache: NearCache, dynamic: DynamicStore) -> None:
        """Take the open connection, the process's near-cache, and what rules go with groups."""
        super().__init__(connection, cache)
        self._dynamic = dynamic

    async def create_group(
        self, env: Environment, new: NewGroup, *, number: int | None = None
    ) -> Group:
        """Create a group. An id or custom id in use is a Conflict, and nothing changed.

        Three round trips: reserve a number, ask the partitions whether it is free (a failover may
        have lost writes of the directory), create. One more where it is created inactive. Whoever
        creates many reserves their numbers together, and gives a `number` that was found free.
        """
        document = _new_document(new)
        for _ in range(TRIES):
            if number is None:
                number = await self._reserve_number(env)
            ruling = None
            if new.rule_tree is not None:
                ruling = await self._dynamic.creating(env, document, number, new.rule_tree)
            try:
                version = await self._insert(env, number, document, ruling)
                break
            except Stale:
                # Rules, or what the tree names, changed meanwhile.
                continue
            except Conflict as ex:
                if str(ex) != "number":
                    raise _taken(ex, document) from None
                number = None
        else:
            raise _contended()
        if ruling is not None:
            document = ruling.document
        fault("create_group.created")
        group = as_group(document, number, int(version))
        if not group.is_active:
            await self.install_state(env, group.number, group.version, "i")
            fault("create_group.installed")
            await self.finish_intent(env, "intents", group.number, group.version)
            fault("create_group.finished")
        if ruling is not None:
            await self._dynamic.in_force(ruling)
        return group

    async def _insert(
        self, env: Environment, number: int, document: GroupDocument, ruling: Ruling | None
    ) -> int:
        tag = env.directory
        indexes = sorted(group_indexes(tag, document))
        kinds = ["group_ids", "group_custom_ids", "intents", "version"]
        arguments: list[bytes | str | int] = [
            number,
            id16(document.id),
            (document.custom_id or "").encode(),
            encode(document if ruling is None else ruling.document),
            _now_us(),
            int(document.is_active),
        ]
        if ruling is not None:
            kinds += ["rules", "installing", "jobs"]
            arguments += [*ruling.written, ruling.rules.version, *ruling.job, *ruling.leaves]
        else:
            kinds += ["jobs"]
            save = None if document.saved_query is None else new_save(number, _now_us())
            arguments += ["", b""] if save is None else [save.id, msgspec.json.encode(save)]
            arguments.append(WAITING)
        version = await self._connection.call(
            scripts.load("create_group" if ruling is None else "create_dynamic"),
            [
                keys.group(tag, number),
                *(keys.key(tag, kind) for kind in kinds),
                *indexes,
                keys.none(tag),
            ],
            arguments,
        )
        return int(version)

    async def _reserve_number(self, env: Environment) -> int:
        counter = keys.key(env.directory, "numbers")
        while True:
            number = int(await self._connection.command(counter, "INCR", counter))
            fault("create_group.reserved")
            used = await all_done(
                *(
                    self._connection.call(
                        scripts.load("probe_number"),
                        [*(keys.key(tag, kind) for kind in _KNOWN_BY), keys.none(tag)],
                        [number],
                    )
                    for tag in env.partitions
                )
            )
            fault("create_group.probed")
            if not any(used):
                return number

    async def update_group(
        self,
        env: Environment,
        gid: str,
        changes: GroupChanges,
        *,
        include_inactive: bool = False,
    ) -> Group:
        """Change a group. A custom id in use is a Conflict, and nothing changed.

        A change of `is_active` is in force in every partition when this returns. So is another rule
        tree of a dynamic group: its members follow it for whatever changes from then on, and a job
        finds those of before; what it refuses is said with `create_group`.
        """
        given = {
            name: value
            for name in (
                "name",
                "is_active",
                "description",
                "custom_id",
                "attributes",
                "modified_by",
            )
            if (value := getattr(changes, name)) is not UNSET
        }
        for _ in range(TRIES):
            old = await self.get_group(env, gid, include_inactive=include_inactive)
            document = replace(_document(old), **given)
            ruling = None
            if changes.rule_tree is not UNSET:
                if not old.is_dynamic:
                    message = "Only a dynamic group has a rule tree."
                    raise Invalid(message, "rule_tree")
                ruling = await self._dynamic.changing(env, old, document, changes.rule_tree)
                if ruling is not None:
                    document = ruling.document
            try:
                version = await self._replace(env, old, document, ruling)
            except Stale:
                continue
            except Conflict as ex:
                raise _taken(ex, document) from None
            fault("update_group.updated")
            group = as_group(document, old.number, version)
            switched = document.is_active != old.is_active
            if not switched and changes.is_active is not UNSET:
                # Asked for again: whoever switched it may have died before all partitions knew.
                switched = await self._is_open(env, old.number)
            if switched:
                await self.install_state(
                    env, group.number, version, "a" if group.is_active else "i"
                )
                fault("update_group.installed")
                await self.finish_intent(env, "intents", group.number, version)
                fault("update_group.finished")
            if ruling is not None:
                await self._dynamic.in_force(ruling)
            return group
        raise _contended()

    async def _replace(
        self, env: Environment, old: Group, new: GroupDocument, ruling: Ruling | None
    ) -> int:
        tag = env.directory
        before, after = group_indexes(tag, old), group_indexes(tag, new)
        leaving, entering = sorted(before - after), sorted(after - before)
        kinds = ["group_custom_ids", "intents", "version"]
        arguments: list[bytes | str | int] = [
            old.number,
            old.version,
            (old.custom_id or "").encode(),
            (new.custom_id or "").encode(),
            encode(new),
            _now_us(),
            len(leaving),
            int(new.is_active != old.is_active),
        ]
        if ruling is not None:
            kinds += ["group_ids", "rules", "installing", "jobs"]
            arguments += [*ruling.written, ruling.rules.version, *ruling.job, *ruling.leaves]
        version = await self._connection.call(
            scripts.load("update_group" if ruling is None else "update_dynamic"),
            [
                keys.group(tag, old.number),
                *(keys.key(tag, kind) for kind in kinds),
                *leaving,
                *entering,
                keys.none(tag),
            ],
            arguments,
        )
        return int(version)

    async def delete_group(
        self, env: Environment, gid: str, *, include_inactive: bool = False
    ) -> None:
        """Delete a group: it is gone everywhere when this returns. The worker sweeps its members.

        NotFound where there is none, or an inactive one that was not asked for. So answers, too,
        who repeats a deletion that died between the directory and the partitions: nothing is known
        of the group's number any more, and checks go on saying member until the worker has told
        the partitions, which it does about 3 s after the deletion at the latest.

        A static group that the rule tree of a dynamic one names is a Conflict, which says of which.
        """
        again = False
        for _ in range(TRIES):
            old = await self.get_group(env, gid, include_inactive=include_inactive)
            ruling, rules_version = None, 0
            if old.is_dynamic:
                ruling = await self._dynamic.deleting(env, old)
            else:
                rules_version = await self._dynamic.unnamed(env, old, again=again)
            try:
                version = await self._remove(env, old, ruling, rules_version)
            except Stale:
                again = True
                continue
            fault("delete_group.deleted")
            await self.install_state(env, old.number, version, "d")
            fault("delete_group.installed")
            if ruling is not None:
                await self._dynamic.in_force(ruling)
            return
        raise _contended()

    async def _remove(
        self, env: Environment, old: Group, ruling: Ruling | None, rules_version: int
    ) -> int:
        tag = env.directory
        kinds = ["group_ids", "group_custom_ids", "intents", "deleting", "version", "rules"]
        arguments: list[bytes | str | int] = [
            old.number,
            old.version,
            id16(old.id),
            (old.custom_id or "").encode(),
            _now_us(),
        ]
        if ruling is None:
            arguments.append(rules_version)
        else:
            kinds += ["installing", "built"]
            arguments += [*ruling.written, ruling.rules.version]
        version = await self._connection.call(
            scripts.load("delete_group" if ruling is None else "delete_dynamic"),
            [
                keys.group(tag, old.number),
                *(keys.key(tag, kind) for kind in kinds),
                *sorted(group_indexes(tag, old)),
                keys.none(tag),
            ],
            arguments,
        )
        return int(version)

    async def install_state(self, env: Environment, number: int, version: int, letter: str) -> None:
        """Install a group's state in every partition, unless a newer one is there.

        Partitions that can be reached have it, also where another one raised Unavailable.
        """
        await all_done(
            *(
                self._connection.call(
                    scripts.load("set_state"),
                    [keys.key(tag, "state"), keys.none(tag)],
                    [number, version, letter],
                )
                for tag in env.partitions
            )
        )

    async def _is_open(self, env: Environment, number: int) -> bool:
        key = keys.key(env.directory, "intents")
        return await self._connection.command(key, "ZSCORE", key, number) is not None

    async def finish_intent(self, env: Environment, kind: str, number: int, version: int) -> None:
        """Drop an intent (`intents` or `deleting`), unless a later change left a newer one."""
        await self._connection.call(
            scripts.load("finish_intent"),
            [keys.key(env.directory, kind), keys.none(env.directory)],
            [number, version],
        )


def _new_document(new: NewGroup) -> GroupDocument:
    if (new.membership_type == DYNAMIC_TYPE) != (new.rule_tree is not None):
        message = "A dynamic group has a rule tree, and no other group has one."
        raise Invalid(message, "rule_tree")
    if new.rule_tree is not None and new.saved_query is not None:
        message = "The members of a dynamic group follow its rule tree, and no query."
        raise Invalid(message, "rule_tree")
    return GroupDocument(
        id=new.id or ids.text(ids.new()),
        name=new.name,
        is_active=new.is_active,
        description=new.description,
        custom_id=new.custom_id,
        created_at_us=_now_us() if new.created_at_us is None else new.created_at_us,
        attributes=new.attributes,
        membership_type=new.membership_type,
        created_by=new.created_by,
        modified_by=new.created_by if new.modified_by is None else new.modified_by,
        saved_query=new.saved_query,
    )


def _document(group: Group) -> GroupDocument:
    held = {name: getattr(group, name) for name in GroupDocument.__struct_fields__}
    return GroupDocument(**held)


def _taken(ex: Conflict, document: GroupDocument) -> Conflict:
    if str(ex) == "jobs":
        return Conflict(
            f"{WAITING} queries are being saved as groups already: wait for one of them."
        )
    if str(ex) == "custom_id":
        return Conflict(f"profile group with custom_id '{document.custom_id}' already exists.")
    return Conflict(f"profile group with id '{document.id}' already exists.")


def _contended() -> Conflict:
    return Conflict("the group is being changed by too many others at once")


def _now_us() -> int:
    return time.time_ns() // 1000
