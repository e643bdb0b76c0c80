"""Mending dynamic groups: rules and what partitions know follow the documents, members the rules.

A document says whether its group is dynamic and with which version of the rules its tree came; the
rules of the application are written anew from that, under a higher version, of which every
partition is told. Members are found by evaluating all rules, as a job does it. A rule tree that
nobody can read, or that names a group which is gone, cannot be mended: it is written anew by
whoever knows what it was, or its group deleted.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from msgspec.structs import replace

from service import groups, ids, keys
from service.errors import BelongError, Unavailable
from service.grouping import Ruled
from service.groups import GroupChanges
from service.rules import parse_tree
from service.store_settling import TURNOVER_SECONDS
from service.verify.findings import STEP, by_name, in_steps, now_us, numbered, shown, whole
from service.verify.look_groups import known as known_groups
from service.verify.look_rules import book
from service.verify.mend_derived import application_of, install, write_rules

if TYPE_CHECKING:
    from collections.abc import Iterable

    from service.groups import GroupDocument
    from service.verify.findings import Census, Finding
    from service.verify.look_groups import Known

log = logging.getLogger(__name__)


# --- documents and rules


async def mend_trees(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Put right what documents say of rule trees, and have the rules say the same."""
    done = []
    numbers = set()
    for name, wrong in by_name(findings).items():
        what = {each.what for each in wrong}
        [group] = await known_groups(census, tag, [name])
        document = group.document
        if document is None:
            continue
        if "type" in what:
            done += await _mend_type(census, tag, name, group, document)
        elif "leaf" in what:
            done += await _bind_anew(census, tag, name, document)
        elif "ruled" in what:
            numbers.add(int(name))
            if document.rules_version < 1:
                right = replace(document, rules_version=now_us())
                await _write(census, tag, name, group, right)
    if numbers:
        done += await _rule_by_documents(census, tag, numbers)
    return done


async def _mend_type(
    census: Census, tag: bytes, name: bytes, group: Known, document: GroupDocument
) -> list[str]:
    """Make a group static that cannot be dynamic, and dynamic where the rules say so."""
    env = census.places[tag].env
    known = await book(census, tag)
    ruled = known.rules is not None and any(
        (each.number, each.version) == (int(name), document.rules_version)
        for each in known.rules.dynamic
    )
    if ruled and env.directory == env.rules_home:
        right = replace(document, membership_type="dynamic")
    else:
        right = replace(
            document, membership_type="static", rule_tree=None, leaf_groups={}, rules_version=0
        )
    written = await _write(census, tag, name, group, right)
    who = f"{census.label(tag)}: group {name.decode()}"
    return [f"{who}: is {right.membership_type} now"] if written else []


async def _write(
    census: Census, tag: bytes, name: bytes, group: Known, document: GroupDocument
) -> bool:
    """Write the document of a group, if it is still as it was read."""
    declared = [keys.group(tag, int(name)), keys.key(tag, "version")]
    raw = groups.encode(document)
    written = await census.call("mend_tree", declared, [name, group.raw or b"", raw, now_us()])
    return bool(written)


async def _bind_anew(census: Census, tag: bytes, name: bytes, document: GroupDocument) -> list[str]:
    """Write a rule tree again as it is: its groups are found by their ids, and it is built anew."""
    try:
        tree = parse_tree(document.rule_tree)
        env = census.places[tag].env
        changes = GroupChanges(rule_tree=tree)
        await census.store.groups.update_group(env, document.id, changes, include_inactive=True)
    except Unavailable:
        raise
    except (BelongError, RecursionError) as ex:
        log.debug("the rule tree of group %s stays as it is: %s", name.decode(), ex)
        return []
    finally:
        census.forget()
    return [f"{census.label(tag)}: group {name.decode()}: its rule tree written anew"]


async def mend_ruled(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Have the rules, and `built`, say what documents say; what is not built is built by a job."""
    done = []
    label = census.label(tag)
    if any(each.what in {"twice", "gone"} for each in findings):
        done += await _rule_by_documents(census, tag, set())
    for each in findings:
        if each.what == "built":
            built = keys.key(tag, "built")
            await census.call("mend_entry", [built], [each.about, "hash", "", ""])
            done.append(f"{label}: forgot what was built of {numbered(each.about)}")
    if any(each.what in {"built", "unbuilt"} for each in findings):
        job = await census.store.jobs.queue_job(application_of(census, tag), whole=False)
        done.append(f"{label}: job {job.id} builds dynamic groups")
    return done


async def _rule_by_documents(census: Census, tag: bytes, numbers: set[int]) -> list[str]:
    """Write the rules anew, with the dynamic groups that documents say there are.

    Those that the rules know, and `numbers`: of nobody else is it known that they are missing.
    """
    home = census.places[tag].env.rules_home
    census.forget()
    known = await book(census, home)
    if known.rules is None:
        return []
    wanted = sorted(numbers | {each.number for each in known.rules.dynamic})
    dynamic = []
    for part in in_steps(wanted):
        found = await known_groups(census, home, [b"%d" % number for number in part])
        for number, group in zip(part, found, strict=True):
            document = group.document
            if document is not None and document.is_dynamic and document.rules_version > 0:
                dynamic.append(Ruled(number, document.rules_version))
    await write_rules(census, home, replace(known.rules, dynamic=tuple(dynamic)))
    version = await install(census, home)
    label, count = census.label(home), len(dynamic)
    return [f"{label}: wrote the rules anew, with {count} dynamic groups, as version {version}"]


async def mend_named(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Tell every partition again what rule trees name, under a higher version of the rules.

    What changed meanwhile may not have been noted: so every dynamic group is built anew.
    """
    count = len({each.about for each in findings})
    version = await install(census, tag, anew=True)
    said = f"since {count} did not know what they name"
    return [f"{census.label(tag)}: every partition told of version {version} of the rules, {said}"]


# --- what partitions note


async def mend_dynamic(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Do not take groups for dynamic that are not."""
    done = []
    for entry in sorted({each.about for each in findings}):
        await _take_out(census, keys.key(tag, "dynamic"), entry)
        who = f"{census.label(tag)}: group {numbered(entry)}"
        done.append(f"{who}: is not noted as dynamic any more")
    return done


async def mend_noted(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Note dynamic groups where they have members."""
    partitions = set(census.places[tag].env.partitions)
    places: dict[bytes, list[bytes]] = {}
    for each in findings:
        end = each.about.index(b"}") + 1
        places.setdefault(each.about[:end], []).append(each.about[end:])
    done = []
    for where in partitions & places.keys():
        numbers = places[where]
        declared = [keys.key(where, "dynamic"), keys.key(where, "count")]
        for part in in_steps(sorted(set(numbers))):
            await census.call("mend_noted", declared, list(part))
        place = census.places[where]
        said = ", ".join(number.decode() for number in sorted(set(numbers)))
        done.append(f"{place.label}: noted as dynamic in partition {place.partition}: {said}")
    return done


async def mend_unsettled(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Enter as unsettled of whom something changed, and nobody else."""
    env = census.places[tag].env
    entries = sorted({each.about for each in findings})
    strays = [each for each in entries if len(each) != ids.SIZE or env.home(each) != tag]
    return [
        *await _settle(census, tag, [each for each in entries if each not in strays], forget=False),
        *await _settle(census, tag, strays, forget=True),
    ]


async def mend_changed(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Drop what no rule can name; enter as unsettled of whom something else changed."""
    strays = {each.unit.name for each in findings if each.what == "stray"}
    others = {each.unit.name for each in findings} - strays
    done = []
    for each in findings:
        if each.what == "name":
            key = keys.of_profile(tag, "changed", each.unit.name)
            await _take_out(census, key, each.about)
            who = f"{census.label(tag)}: profile {census.profile(tag, each.unit.name)}"
            done.append(f"{who}: forgot that {shown(each.about)} changed")
    return [
        *done,
        *await _settle(census, tag, sorted(others), forget=False),
        *await _settle(census, tag, sorted(strays), forget=True),
    ]


async def _settle(
    census: Census, tag: bytes, entries: Iterable[bytes], *, forget: bool
) -> list[str]:
    done = []
    for part in in_steps(list(entries), STEP):
        declared = [keys.key(tag, "unsettled")]
        letters = await census.call("mend_unsettled", declared, [now_us(), int(forget), *part])
        for entry, letter in zip(part, letters.decode(), strict=True):
            who = f"{census.label(tag)}: profile {census.profile(tag, entry)}"
            done.append(f"{who}: is {'' if letter == '+' else 'not '}unsettled")
    return done


async def mend_turnover(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Drop what is no count, and have hours go by themselves."""
    done = []
    for hour, wrong in by_name(findings).items():
        if whole(hour) is None:
            continue
        key = keys.turnover(tag, int(hour))
        for each in wrong:
            if each.what == "count":
                await census.call("mend_entry", [key], [each.about, "hash", "", ""])
        if any(each.what == "endless" for each in wrong):
            await census.call("mend_requests", [key], [TURNOVER_SECONDS])
        done.append(f"{census.label(tag)}: the turnover of hour {hour.decode()} put right")
    return done


async def _take_out(census: Census, key: bytes, entry: bytes) -> None:
    await census.call("mend_entry", [key], [entry, "set", "", ""])


# --- members


async def mend_subjects(census: Census, tag: bytes, findings: list[Finding]) -> list[str]:
    """Have profiles follow all rules, as a job does it."""
    env = census.places[tag].env
    mixed = sorted({each.unit.name for each in findings})
    for part in in_steps(mixed):
        await census.store.settling.walk(env, list(part), None)
    return [
        f"{census.label(tag)}: profile {census.profile(tag, each)}: rules followed anew"
        for each in mixed
    ]
