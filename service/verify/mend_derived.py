"""Mending derived data: it is derived anew from facts, as the worker would.

What contradicts itself is taken apart first, and whoever it concerns is marked as behind before
that, so that a repair that dies half-way leaves nothing that the worker does not go on with. Rules
that differ between directory and partitions are told again, under a higher version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from service import ids, keys
from service.attributes import KEPT_SECONDS
from service.environment import as_application
from service.errors import ScriptFailed
from service.grouping import AGGREGATIONS, Definition, Rules
from service.store_definitions import DefinitionStore
from service.store_group_directory import GroupDirectory
from service.store_jobs import new_job
from service.verify.findings import by_name, in_steps, now_us, shown, whole
from service.verify.look_derived import instances
from service.verify.look_rules import book, environments, watches

if TYPE_CHECKING:
    from collections.abc import Iterable

    from service.environment import Application
    from service.verify.findings import Census, Finding


# --- rules


async def mend_rules(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Put the rules of an application right, then what partitions know of them, then its jobs."""
    label = census.label(tag)
    what = {each.what for each in findings}
    if "misplaced" in what:
        for kind in ("rules", "jobs", "installing", "weekly", "built"):
            await _drop(census, tag, keys.key(tag, kind))
        return [f"{label}: dropped definitions and jobs, which belong to production"]
    done = []
    if "document" in what:
        await _drop(census, tag, keys.key(tag, "rules"))
        done.append(f"{label}: dropped the rules, with every definition: nobody could read them")
    for kind in ("installing", "weekly"):
        if kind in what:
            await _drop(census, tag, keys.key(tag, kind))
            done.append(f"{label}: dropped {kind}")
    census.books.pop(tag, None)
    if what & {"definition", "ahead"}:
        done += await _mend_document(census, tag)
    if what & {"document", "definition", "ahead", "installing", "watch"}:
        version = await install(census, tag)
        done.append(f"{label}: every partition told of version {version} of the rules")
    jobs = sorted(each.about for each in findings if each.what == "job")
    for name in jobs:
        await _forget(census, keys.key(tag, "jobs"), name, "hash")
        done.append(f"{label}: dropped job {shown(name)}")
    if jobs:
        job = await census.store.jobs.queue_job(application_of(census, tag))
        done.append(f"{label}: job {job.id} walks all profiles")
    return done


async def _mend_document(census: Census, home: bytes) -> list[str]:
    """Write rules without what they cannot hold, under a version that is above all they name."""
    known = await book(census, home)
    if known.rules is None:
        return []
    fit: list[Definition] = []
    for each in known.rules.definitions:
        attributes = tuple(one for one in each.attributes if one.type in AGGREGATIONS)
        if all(each.id != one.id and each.number != one.number for one in fit):
            fit.append(replace(each, attributes=attributes))
    await write_rules(census, home, replace(known.rules, definitions=tuple(fit)))
    dropped = len(known.rules.definitions) - len(fit)
    return [f"{census.label(home)}: wrote the rules anew, without {dropped} definitions"]


async def write_rules(census: Census, home: bytes, rules: Rules) -> None:
    """Write rules of an application, under a version that is above all they name.

    Everybody is looked at again by them, in a weekly application by rule trees alone.
    """
    known = await book(census, home)
    named = [rules.version, *(each.version for each in rules.dynamic)]
    for each in rules.definitions:
        named += [each.number, *(one.since for one in each.attributes)]
    now = now_us()
    version = max(max(named) + 1, now)
    # Everybody is looked at again, whatever partitions were told.
    rules = replace(rules, version=version, before=version - 1)
    is_whole = not (rules.weekly and rules.definitions)
    job = new_job("rules", now, whole=is_whole)
    await census.call(
        "replace_rules",
        [keys.key(home, kind) for kind in ("rules", "installing", "jobs", "built", "weekly")],
        [
            known.raw or b"",
            msgspec.json.encode(rules),
            rules.version,
            job.id if is_whole or rules.dynamic else "",
            msgspec.json.encode(job),
            int(is_whole),
            "",
            1,
        ],
    )
    census.forget()


async def install(census: Census, home: bytes, *, anew: bool = False) -> int:
    """Tell every partition of the rules, under a higher version where one is ahead of them.

    So, too, where one watches the wrong names, or all of it is to be told `anew`.
    """
    known = await book(census, home)
    rules = known.rules or Rules()
    above = rules.version + 1 if anew else 0
    for env in environments(census, home):
        for tag, watch in (await watches(census, env)).items():
            version = whole(watch.version) if watch.version is not None else 0
            if version is None:
                await _drop(census, tag, keys.key(tag, "rules"))
            elif version > rules.version:
                above = max(above, version)
            elif version == rules.version and watch.names != {
                name.encode() for name in rules.watched
            }:
                above = max(above, version + 1)
    application = application_of(census, home)
    store = census.store
    # One that remembers nothing: who was told before is told no more than the difference.
    definitions = DefinitionStore(
        store.connection, store.registry, GroupDirectory(store.connection, store.cache)
    )
    if above:
        await definitions.reload(application.production, above)
    census.forget()
    return (await definitions.install(application)).version


def application_of(census: Census, home: bytes) -> Application:
    """Give the application whose rules are kept in a directory."""
    number, document = next(
        (number, document)
        for number, document in census.documents.items()
        if keys.directory(document.environments["production"].number) == home
    )
    return as_application(number, document)


# --- profiles


async def mend_listed(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Derive profiles anew; what they keep of instances that nobody can read goes before that."""
    done, anew = [], []
    for mixed, wrong in by_name(findings).items():
        who = f"{census.label(tag)}: profile {census.profile(tag, mixed)}"
        key = keys.of_profile(tag, "instances", mixed)
        if any(each.what == "stray" for each in wrong):
            await _drop(census, tag, key)
            done.append(f"{who}: forgot the instances that another partition knows")
            continue
        for each in wrong:
            if each.what == "told":
                await _forget(census, key, each.about, "hash")
        anew.append(mixed)
        done.append(f"{who}: derived anew")
    await _derive(census, tag, anew)
    return done


async def _derive(census: Census, tag: bytes, mixed: Iterable[bytes]) -> None:
    """Derive profiles of an environment, whichever their partitions."""
    env = census.places[tag].env
    for step in in_steps(sorted(set(mixed))):
        await census.store.derivation.derive_profiles(env, step, bulk=True)


async def _defer(census: Census, tag: bytes, mixed: Iterable[bytes]) -> None:
    """Mark profiles of an environment as behind."""
    env = census.places[tag].env
    for home, within in env.by_home(sorted(set(mixed))).items():
        for step in in_steps(within):
            await census.call("defer_profiles", [keys.key(home, "dirty")], [now_us(), *step])


# --- instances


async def mend_instances(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Mend instances: what contradicts itself is made anew, the rest is told again."""
    done = []
    for iid, wrong in by_name(findings).items():
        what = {each.what for each in wrong}
        who = f"{census.label(tag)}: instance {iid.hex()}"
        if what & {"place", "header", "contribution"}:
            contributors = await _contributors(census, tag, iid)
            await _defer(census, tag, contributors)
            await census.call(
                "mend_instance", [keys.key(tag, "stale"), keys.key(tag, "ended")], [iid]
            )
            await _derive(census, tag, contributors)
            done.append(f"{who}: taken apart, {len(contributors)} profiles derived anew")
            continue
        if "rules" in what:
            contributors = await _contributors(census, tag, iid)
            await _defer(census, tag, contributors)
            await _derive(census, tag, contributors)
            done.append(f"{who}: {len(contributors)} profiles derived anew")
        if "index" in what:
            await census.call("mend_index", [keys.key(tag, "stale")], [iid])
            done.append(f"{who}: entered into the list of its definition's")
        done += await _relist(census, tag, iid, wrong)
        if what & {"told", "values", "empty", "formers", "limit"}:
            done += await _tell(census, tag, iid, wrong)
    await census.store.derivation.settle_stale(census.places[tag].env, now_us())
    return done


async def _contributors(census: Census, tag: bytes, iid: bytes) -> set[bytes]:
    """Give everybody who contributes to an instance, as either of its parts has it."""
    found: set[bytes] = set()
    async for _, _, rows in instances(census, tag, [iid]):
        found.update(each for each in rows[::4] if len(each) == ids.SIZE)
    async for step in census.walk(keys.of_instance(tag, "contributors", iid), "ZSCAN"):
        found.update(each[ids.SIZE :] for each in step[::2] if len(each) == 2 * ids.SIZE)
    return found


async def _relist(census: Census, tag: bytes, iid: bytes, wrong: list[Finding]) -> list[str]:
    """Have contributors list the instance, and see what their facts say to it."""
    mixed = [each.about for each in wrong if each.what == "unlisted"]
    if not mixed:
        return []
    env = census.places[tag].env
    number = await _number(census, tag, iid)
    for home, within in env.by_home(mixed).items():
        for step in in_steps(within):
            await census.call(
                "mend_listed", [keys.key(home, "erasing")], [iid, number, now_us(), *step]
            )
    await _derive(census, tag, mixed)
    return [
        f"{census.label(tag)}: profile {census.profile(tag, each)}: derived anew" for each in mixed
    ]


async def _number(census: Census, tag: bytes, iid: bytes) -> bytes:
    async for _, header, _ in instances(census, tag, [iid]):
        if whole(header.number):
            return header.number or b""
    message = f"instance {iid.hex()} has no number"
    raise ScriptFailed(message)


async def _tell(census: Census, tag: bytes, iid: bytes, wrong: list[Finding]) -> list[str]:
    """Have everybody told anew who counts, or was told what only those are."""
    known = await book(census, tag)
    limited = known.rules is not None and any(each.what == "limit" for each in wrong)
    limit = known.rules.limit if known.rules is not None and limited else ""
    beyond = [each.about for each in wrong if each.what == "told"]
    for step in in_steps(beyond) if beyond else [[]]:
        arguments = [iid, now_us(), limit, *step]
        if not await census.call("mend_stale", [keys.key(tag, "stale")], arguments):
            return []
    return [f"{census.label(tag)}: instance {iid.hex()}: told anew"]


# --- what stands beside


async def mend_entries(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Drop entries of lists of instances, and of those behind or ended, that name nothing."""
    done = []
    for each in findings:
        kind = "index:" + each.unit.name.decode() if each.unit.kind == "indexed" else each.unit.kind
        await _forget(census, keys.key(tag, kind), each.about, "zset")
        done.append(f"{census.label(tag)}: {kind}: dropped {shown(each.about)}")
    return done


async def mend_requests(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Put right what profiles are remembered for."""
    done = []
    for mixed, wrong in by_name(findings).items():
        key = keys.of_profile(tag, "requests", mixed)
        who = f"{census.label(tag)}: profile {census.profile(tag, mixed)}"
        what = {each.what for each in wrong}
        if "nobody" in what:
            await _drop(census, tag, key)
            done.append(f"{who}: its batches forgotten")
            continue
        for each in wrong:
            if each.what == "entry":
                await _forget(census, key, each.about, "zset")
        if "endless" in what:
            await census.call("mend_requests", [key], [KEPT_SECONDS])
        done.append(f"{who}: what is remembered of its batches put right")
    return done


async def _forget(census: Census, key: bytes, entry: bytes, kind: str) -> None:
    await census.call("mend_entry", [key], [entry, kind, "", ""])


async def _drop(census: Census, tag: bytes, key: bytes) -> None:
    await census.call("mend_key", [keys.key(tag, "version")], [key, b""])
