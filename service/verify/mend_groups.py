"""Mending directories: indexes and maps follow the documents, states in partitions too.

A document is the truth about its group. What it does not know of is gone: a number in use that has
no document is swept as a deleted group is. Every step is compare-and-set against the document that
was read; where that changed meanwhile, nothing is done, and the next round looks again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from service import ids, keys
from service.errors import Stale
from service.groups import group_indexes
from service.verify.findings import by_name, now_us, numbered, shown, whole
from service.verify.look_groups import held, known
from service.verify.mend_members import recount

if TYPE_CHECKING:
    from service.verify.findings import Census, Finding
    from service.verify.look_groups import Known


async def mend_groups(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Enter groups into their indexes and maps; end deletions and versions that cannot be."""
    done = []
    for name, found in by_name(findings).items():
        wrong = {each.what for each in found}
        try:
            done += await _mend_group(census, tag, name, wrong)
        except Stale:
            continue
    return done


async def _mend_group(census: Census, tag: bytes, name: bytes, wrong: set[str]) -> list[str]:
    [group] = await known(census, tag, [name])
    who = f"{census.label(tag)}: group {name.decode()}"
    done = []
    if group.raw is None:
        return []
    if "deleting" in wrong and await census.call(
        "mend_entry", [keys.key(tag, "deleting")], [name, "zset", name, group.raw]
    ):
        done.append(f"{who}: is not being deleted any more")
        wrong = wrong | {"version"}
    if "version" in wrong:
        done += await _reinstall(census, tag, name, group)
    document = group.document
    id16 = None if document is None else ids.parse(document.id)
    if document is None or id16 is None or not wrong & {"id", "custom_id", "index"}:
        return done
    custom_id = (document.custom_id or "").encode()
    if await _taken(census, tag, "group_ids", id16, name):
        id16 = b""
    if custom_id and await _taken(census, tag, "group_custom_ids", custom_id, name):
        custom_id = b""
    written = await census.call(
        "mend_document",
        [
            keys.group(tag, int(name)),
            keys.key(tag, "group_ids"),
            keys.key(tag, "group_custom_ids"),
            keys.key(tag, "version"),
            *sorted(group_indexes(tag, document)),
        ],
        [name, group.raw, id16, custom_id],
    )
    return [*done, f"{who}: {written} index and id entries written"] if written else done


async def _taken(census: Census, tag: bytes, kind: str, field: bytes, name: bytes) -> bool:
    """Say whether another group has an id by right: its own document says the same."""
    key = keys.key(tag, kind)
    holder = await census.connection.command(key, "HGET", key, field)
    if holder is None or holder == name or not whole(holder):
        return False
    [other] = await known(census, tag, [holder])
    if other.document is None:
        return False
    if kind == "group_ids":
        return ids.parse(other.document.id) == field
    return (other.document.custom_id or "").encode() == field


async def mend_numbers(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Reinstall states from documents; sweep numbers that nobody owns."""
    done = []
    swept = False
    for name, found in by_name(findings).items():
        [group] = await known(census, tag, [name])
        wrong = {each.what for each in found}
        try:
            if group.exists:
                if "state" in wrong:
                    done += await _reinstall(census, tag, name, group)
                if "counter" in wrong:
                    done += await _raise_counter(census, tag, name, b"")
            else:
                done += await _bury(census, tag, name, group)
                swept = True
        except Stale:
            continue
    while swept and await census.store.upkeep.sweep_groups(census.places[tag].env, 2**53):
        pass
    return done


async def _raise_counter(census: Census, tag: bytes, name: bytes, version: bytes) -> list[str]:
    raised, deleting = await census.call(
        "mend_number",
        [keys.key(tag, "numbers"), keys.key(tag, "deleting")],
        [name, version],
    )
    who = f"{census.label(tag)}: group {name.decode()}"
    done = []
    if raised:
        done.append(f"{who}: the last number given out is now at least this one")
    if deleting:
        done.append(f"{who}: swept, since nobody owns it")
    return done


async def _drop_malformed(census: Census, tag: bytes, name: bytes) -> int:
    """Drop malformed states of a number; give the highest version of the others."""
    for each in census.places[tag].env.partitions:
        await census.call("mend_states", [keys.key(each, "state")], [name])
    [states] = await held(census, tag, [name])
    return max((int(each.state.split()[0]) for each in states if each.state), default=0)


async def _reinstall(census: Census, tag: bytes, name: bytes, group: Known) -> list[str]:
    """Install the state that a document says in every partition, under a new version."""
    document = group.document
    if document is None or group.raw is None:
        return []
    highest = await _drop_malformed(census, tag, name)
    version = int(
        await census.call(
            "mend_version",
            [
                keys.group(tag, int(name)),
                keys.key(tag, "intents"),
                keys.key(tag, "version"),
            ],
            [name, group.raw, highest, now_us()],
        )
    )
    letter = "a" if document.is_active else "i"
    env = census.places[tag].env
    await census.store.groups.install_state(env, int(name), version, letter)
    await census.call("finish_intent", [keys.key(tag, "intents")], [name, version])
    who = f"{census.label(tag)}: group {name.decode()}"
    return [f"{who}: its state installed again: {'active' if letter == 'a' else 'inactive'}"]


async def _bury(census: Census, tag: bytes, name: bytes, group: Known) -> list[str]:
    """Leave the intent to sweep a number that has no document, in a state that lets it be swept."""
    env = census.places[tag].env
    highest = await _drop_malformed(census, tag, name)
    # Counts have to be exact, else a sweep does not know when it is at the end.
    for each in env.partitions:
        await recount(census, each, name)
    version = max(highest + 1, now_us())
    if group.deleting is not None:
        await census.store.groups.install_state(env, int(name), version, "d")
        return []
    done = await _raise_counter(census, tag, name, b"%d" % version)
    await census.store.groups.install_state(env, int(name), version, "d")
    return done


async def mend_indexes(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Take entries out of indexes where they do not belong; scores are `mend_groups`' care."""
    done = []
    for each in findings:
        key = tag + b":" + each.unit.name
        number, group = await _named(census, tag, each.about)
        document = None if group is None else group.document
        if document is not None and key in group_indexes(tag, document):
            continue
        if await _take_out(census, key, "zset", each.about, number, group):
            who = f"{census.label(tag)}: group {numbered(each.about)}"
            done.append(f"{who}: taken out of the index {shown(key)}")
    return done


async def mend_ids(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Take ids out of the maps that their groups do not have."""
    done = []
    for each in findings:
        key = tag + b":" + each.unit.name
        value = await census.connection.command(key, "HGET", key, each.about)
        number, group = await _named(census, tag, value or b"")
        document = None if group is None else group.document
        if document is not None:
            field = (document.custom_id or "").encode()
            if each.unit.name == b"group_ids":
                field = ids.parse(document.id) or b""
            if field == each.about:
                continue
        if await _take_out(census, key, "hash", each.about, number, group):
            done.append(f"{census.label(tag)}: taken out of {shown(key)}: {shown(each.about)}")
    return done


async def mend_intents(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Drop what is left to do for groups where there is nothing to do it for."""
    done = []
    for each in findings:
        number, group = await _named(census, tag, each.about)
        who = f"{census.label(tag)}: group {numbered(each.about)}"
        if group is not None and not group.exists and each.unit.name == b"deleting":
            # Perhaps something is left of it: it is swept under a version that is one.
            await _take_out(census, keys.key(tag, "deleting"), "zset", each.about, number, group)
            [group] = await known(census, tag, [number])
            done += await _bury(census, tag, number, group)
        elif await _take_out(
            census, tag + b":" + each.unit.name, "zset", each.about, number, group
        ):
            done.append(f"{who}: taken out of {each.unit.name.decode()}")
            if group is not None and group.exists:
                done += await _reinstall(census, tag, number, group)
    return done


async def _named(census: Census, tag: bytes, entry: bytes) -> tuple[bytes, Known | None]:
    """Give the number that an entry names and what is known of it; empty where it is none."""
    if not whole(entry):
        return b"", None
    [group] = await known(census, tag, [entry])
    return entry, group


async def _take_out(
    census: Census, key: bytes, type_: str, entry: bytes, number: bytes, group: Known | None
) -> bool:
    expected = b"" if group is None or group.raw is None else group.raw
    try:
        return bool(await census.call("mend_entry", [key], [entry, type_, number, expected]))
    except Stale:
        return False


async def mend_counters(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Set counters that are no numbers: above all that was given out."""
    done = []
    for each in findings:
        key = tag + b":" + each.unit.name
        value = now_us()
        if each.unit.name == b"numbers":
            value = 0
            for kind in ("groups", "inactive", "deleting"):
                index = keys.key(tag, kind)
                last = await census.connection.command(index, "ZRANGE", index, -1, -1)
                value = max(value, *(whole(number) or 0 for number in last), 0)
        if await census.call("mend_counter", [key], [value]):
            who = f"{census.label(tag)}: the counter {each.unit.name.decode()}"
            done.append(f"{who} set to {value}")
    return done
