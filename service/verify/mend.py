"""Mending what verify found: which mender is for what, and in which order.

Order matters: keys that nobody can read go first, counts are made exact before anything is moved,
documents are put right before what follows from them, then profiles; what is derived from all of
these comes last. A mender does what it can and says so; what it could not do is found again by the
next round.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from service import keys
from service.errors import BelongError, ScriptFailed, Unavailable
from service.verify.findings import shown, whole
from service.verify.look_registry import Registered, client_ids, counters, type_of, workspaces
from service.verify.mend_derived import (
    mend_entries,
    mend_instances,
    mend_listed,
    mend_requests,
    mend_rules,
)
from service.verify.mend_dynamic import (
    mend_changed,
    mend_dynamic,
    mend_named,
    mend_noted,
    mend_ruled,
    mend_subjects,
    mend_trees,
    mend_turnover,
    mend_unsettled,
)
from service.verify.mend_groups import (
    mend_counters,
    mend_groups,
    mend_ids,
    mend_indexes,
    mend_intents,
    mend_numbers,
)
from service.verify.mend_members import (
    mend_counts,
    mend_erasing,
    mend_facts,
    mend_fields,
    mend_memberships,
    mend_segments,
)
from service.verify.mend_profiles import (
    mend_attributes,
    mend_buckets,
    mend_records,
    mend_reserved,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from service.verify.findings import Census, Finding

    Mend = Callable[[Census, bytes, list[Finding]], Awaitable[list[str]]]

log = logging.getLogger(__name__)


async def mend_keys(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Delete keys below our tags that the schema does not have, or not with this type."""
    done = []
    for each in findings:
        key = keys.parse(each.unit.name)
        right = b"" if key is None else type_of(key)
        declared = [keys.key(tag, "version")]
        if await census.call("mend_key", declared, [each.unit.name, right]):
            whose = "registry" if tag == keys.REGISTRY else census.label(tag)
            done.append(f"{whose}: deleted the key {shown(each.unit.name)}")
    return done


async def mend_registry(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Write maps and counters of the registry from its documents; drop what is no credential."""
    held = await Registered.read(census)
    documents = held.documents()
    meant = {"client_ids": client_ids(documents), "workspaces": workspaces(documents)}
    done = []

    async def write(kind: str, *command: bytes | str | int) -> None:
        key = keys.key(tag, kind)
        await census.connection.command(key, command[0], key, *command[1:])
        done.append(f"registry: {kind}: {' '.join(_word(each) for each in command)}")

    for each in findings:
        if each.what in meant:
            number = meant[each.what].get(each.about)
            if number is not None:
                await write(each.what, "HSET", each.about, number)
            else:
                await write(each.what, "HDEL", each.about)
        elif each.what == "counter":
            least = counters(documents)[each.about]
            behind = whole(held.numbers.get(each.about, b"0"))
            # By the difference, where there is one: somebody may take a number meanwhile.
            step = ("HSET", least) if behind is None else ("HINCRBY", least - behind)
            await write("numbers", step[0], each.about, step[1])
        elif each.what in {"credential", "key"}:
            await write(f"{each.what}s", "HDEL", each.about)
        elif each.what == "version":
            await write("version", "SET", 0)
    if done:
        await census.connection.command(keys.key(tag, "version"), "INCR", keys.key(tag, "version"))
    return done


def _word(part: bytes | str | int) -> str:
    return shown(part) if isinstance(part, bytes) else str(part)


MENDERS: dict[str, Mend] = {
    "key": mend_keys,
    "registry": mend_registry,
    "counter": mend_counters,
    "field": mend_fields,
    "members": mend_counts,
    "g": mend_segments,
    "erasing": mend_erasing,
    "intents": mend_intents,
    "group": mend_groups,
    "number": mend_numbers,
    "index": mend_indexes,
    "ids": mend_ids,
    "dynamic": mend_dynamic,
    "noted": mend_noted,
    "m": mend_memberships,
    "record": mend_records,
    "listing": mend_facts,
    "attributes": mend_attributes,
    "reserved": mend_reserved,
    "bucket": mend_buckets,
    "rules": mend_rules,
    "tree": mend_trees,
    "ruled": mend_ruled,
    "named": mend_named,
    "requests": mend_requests,
    "ended": mend_entries,
    "dirty": mend_entries,
    "stale": mend_entries,
    "due": mend_entries,
    "turnover": mend_turnover,
    "unsettled": mend_unsettled,
    "changed": mend_changed,
    "indexed": mend_entries,
    "instance": mend_instances,
    "listed": mend_listed,
    "facts": mend_listed,
    "subject": mend_subjects,
    "recordless": mend_subjects,
}
"""Menders by kind of unit, in the order in which they have to run."""


async def mend(census: Census, findings: list[Finding]) -> list[str]:
    """Mend what can be mended; what was done, in sentences."""
    done = []
    for kind, mender in MENDERS.items():
        by_tag: dict[bytes, list[Finding]] = {}
        for each in findings:
            if each.unit.kind == kind and each.what != "unreadable":
                by_tag.setdefault(each.unit.tag, []).append(each)
        for tag, found in by_tag.items():
            try:
                done += await mender(census, tag, found)
            except Unavailable:
                raise
            except (BelongError, ScriptFailed):
                # Something that the script needs is broken too: it is mended first.
                log.debug("%s below %r is left to the next round", kind, tag, exc_info=True)
    return done
