"""Looking at dynamic groups: their rule trees, what partitions know of them, what is left to do.

A rule tree is kept with its group; the rules of the application name the group and the version at
which the tree came, partitions know what all trees name, and `built` says which rules everybody was
looked at by. What is noted as changed, or to be looked at by time alone, has to be such that the
worker can go on with it. Who is a member of a dynamic group is the matter of `look_settled`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from service import ids, keys
from service.errors import Invalid
from service.rules import Book as RuleBook
from service.rules import parse_tree
from service.verify.findings import STEP, Finding, Unit, in_steps, numbered, shown, whole
from service.verify.look_groups import known as known_groups
from service.verify.look_rules import book, environments

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from service.environment import Environment
    from service.groups import GroupDocument
    from service.rules import Rule
    from service.verify.findings import Census
    from service.verify.look_rules import Book

NAMES = 500
"""Names of what changed of a profile that come with it; more are walked."""
NUMBERS = 500
"""Groups that one script is asked about."""
TYPES = frozenset({"static", "dynamic"})

_NAME = re.compile(rb"\x00(?:0|[1-9]\d*)|\x00[:=][1-9]\d*")
"""What `changed` may hold besides names of attributes."""
_TURNED = re.compile(rb"[+-][1-9]\d*")


class Rulebook(NamedTuple):
    """The rules of an application, as its documents say; `unread` are groups without a rule.

    Of those the rules of the application say that they are dynamic, and no document fits.
    """

    book: RuleBook
    unread: frozenset[int]


async def rulebook(census: Census, tag: bytes) -> Rulebook | None:
    """Give the rules of the application that a tag belongs to; None: its rules cannot be read."""
    home = census.places[tag].env.rules_home
    held = census.rulebooks.get(home)
    if held is None:
        known = await book(census, tag)
        if known.rules is None:
            return None
        trees: dict[int, Rule] = {}
        versions = {each.number: each.version for each in known.rules.dynamic}
        for part in in_steps(sorted(versions)):
            found = await known_groups(census, home, [b"%d" % number for number in part])
            for number, group in zip(part, found, strict=True):
                document = group.document
                if document is not None and document.rules_version == versions[number]:
                    rule = _rule(census, home, number, document)
                    if rule is not None:
                        trees[number] = rule
        unread = frozenset(versions.keys() - trees.keys())
        held = census.rulebooks[home] = Rulebook(RuleBook(known.rules, trees), unread)
    return held


def _rule(census: Census, home: bytes, number: int, document: GroupDocument) -> Rule | None:
    """Give the rule of a group; None where its document holds none. Remembered by version."""
    if not document.is_dynamic:
        return None
    at = home, number
    held = census.rules.get(at)
    if held is not None and held[0] == document:
        return held[1]
    try:
        tree = parse_tree(document.rule_tree)
        leaves = {gid: (gid, document.leaf_groups[gid]) for gid in tree.groups}
    except (Invalid, KeyError, RecursionError):
        return None
    rule = tree.bound(number, document.rules_version, leaves)
    census.rules[at] = document, rule
    return rule


# --- documents


async def look_trees(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at what documents of groups say of rule trees, by number."""
    documents: dict[bytes, GroupDocument] = {}
    for name, group in zip(names, await known_groups(census, tag, names), strict=True):
        if group.document is not None:
            documents[name] = group.document
    if not documents:
        return []
    place = census.places[tag]
    known = await book(census, tag)
    leaves = {b"%d" % number for each in documents.values() for number in each.leaf_groups.values()}
    held: dict[bytes, GroupDocument] = {}
    for part in in_steps(sorted(leaves)):
        for leaf, group in zip(part, await known_groups(census, tag, list(part)), strict=True):
            if group.document is not None:
                held[leaf] = group.document
    found = []
    for name, document in documents.items():
        for what, about, said in _wrong_document(name, document, place.env, known, held):
            text = f"{place.label}: group {name.decode()} {said}"
            found.append(Finding(Unit("tree", tag, name), what, about, text))
    return found


def _wrong_document(
    name: bytes,
    document: GroupDocument,
    env: Environment,
    known: Book,
    leaves: dict[bytes, GroupDocument],
) -> Iterable[tuple[str, bytes, str]]:
    """Say what a document cannot say of a rule tree."""
    if document.membership_type not in TYPES:
        yield "type", b"", f"is {shown(document.membership_type.encode())}: static or dynamic it is"
        return
    if not document.is_dynamic:
        if document.rule_tree is not None or document.leaf_groups or document.rules_version:
            yield "type", b"", "is static, and has a rule tree"
    elif env.directory != env.rules_home:
        yield "type", b"", f"is dynamic, which no group of {env.name} is"
    else:
        yield from _wrong_tree(name, document, known, leaves)


def _wrong_tree(
    name: bytes, document: GroupDocument, known: Book, leaves: dict[bytes, GroupDocument]
) -> Iterable[tuple[str, bytes, str]]:
    if known.rules is not None and not any(
        (each.number, each.version) == (int(name), document.rules_version)
        for each in known.rules.dynamic
    ):
        text = f"came with version {document.rules_version} of the rules, which do not say so"
        yield "ruled", b"", text
    try:
        tree = parse_tree(document.rule_tree)
    except (Invalid, RecursionError) as ex:
        yield "tree", b"", f"has a rule tree that is none: {ex}"
        return
    for gid in sorted({*tree.groups, *document.leaf_groups}):
        number = document.leaf_groups.get(gid)
        leaf = leaves.get(b"%d" % number) if number is not None else None
        if gid not in tree.groups:
            said = "which its rule tree does not name"
        elif leaf is None or leaf.id != gid or ids.parse(gid) is None:
            said = "which it is not"
        elif leaf.is_dynamic:
            said = "which is dynamic itself"
        else:
            continue
        text = f"names the group {shown(gid.encode())} as number {number or 'none'}, {said}"
        yield "leaf", gid.encode(), text


async def look_ruled(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at what the rules of an application, and `built`, say of dynamic groups."""
    home = census.places[tag].env.rules_home
    if tag != home:
        # `look_rules` says so.
        return []
    known = await book(census, home)
    if known.is_going or known.rules is None:
        return []
    unit, label = Unit("ruled", home, names[0]), census.label(home)
    found = []
    versions: dict[int, int] = {}
    for each in known.rules.dynamic:
        if each.number in versions or not 1 <= each.version <= known.rules.version:
            text = f"{label}: the rules say of group {each.number} what cannot be, or say it twice"
            found.append(Finding(unit, "twice", b"%d" % each.number, text))
        versions[each.number] = each.version
    for part in in_steps(sorted(versions)):
        groups = await known_groups(census, home, [b"%d" % number for number in part])
        for number, group in zip(part, groups, strict=True):
            if group.document is None or not group.document.is_dynamic:
                text = f"{label}: the rules say that group {number} is dynamic, which it is not"
                found.append(Finding(unit, "gone", b"%d" % number, text))
    return found + [
        Finding(unit, what, field, f"{label}: {said}")
        for what, field, said in _wrong_built(known, versions)
    ]


def _wrong_built(known: Book, versions: dict[int, int]) -> Iterable[tuple[str, bytes, str]]:
    """Say what `built` cannot hold, and what waits for a job that nobody queued."""
    for field, value in sorted(known.built.items()):
        version = whole(value)
        if field in {b"wanted", b"whole"}:
            if version is None:
                yield "built", field, f"built has {shown(value)} as {field.decode()}, which is none"
            continue
        number = whole(field)
        if number is None or number not in versions:
            text = f"group {numbered(field)} was built, and the rules know of none such"
            yield "built", field, text
        elif version is None or version > versions[number]:
            text = (
                f"group {number} was built by version {shown(value)} of the rules, and its rule"
                f" tree came with {versions[number]}"
            )
            yield "built", field, text
    if known.rules is not None and not known.walks and not known.has_failed:
        for number, version in versions.items():
            if known.built.get(b"%d" % number) != b"%d" % version:
                text = f"group {number} is not built by its rule tree, and no job is to do it"
                yield "unbuilt", b"%d" % number, text


# --- what partitions know


async def wrong_named(census: Census, tag: bytes, known: Book) -> str | None:
    """Say what is wrong with what a partition knows of names in rule trees, None if nothing is.

    For a partition that knows the version of the rules. While rules are being told it may name
    more: the names are taken out last.
    """
    env = census.places[tag].env
    wanted: frozenset[bytes] = frozenset()
    may_be_more = known.installing is not None
    if env.directory == env.rules_home:
        rules = await rulebook(census, tag)
        if rules is None:
            return None
        wanted = rules.book.named
        # Of a group whose tree cannot be read somebody may know it as it was.
        may_be_more = may_be_more or bool(rules.unread)
    missing = set(wanted)
    more = False
    async for step in census.walk(keys.key(tag, "named"), "SSCAN"):
        missing.difference_update(step)
        more = more or not wanted.issuperset(step)
    if missing:
        return f"does not know that rule trees name {shown(min(missing))}"
    if more and not may_be_more:
        return "knows of names that no rule tree has"
    return None


async def look_named(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at what the partitions of an application know of names in its rule trees.

    Those that are yet to be told of the rules may know anything.
    """
    home = census.places[tag].env.rules_home
    known = await book(census, home)
    if tag != home or known.is_going or known.rules is None:
        return []
    found = []
    for env in environments(census, home):
        for where in env.partitions:
            key = keys.key(where, "rules")
            version = await census.connection.command(key, "GET", key)
            if version is None:
                version = b"0"
            if version != b"%d" % known.rules.version:
                continue
            said = await wrong_named(census, where, known)
            if said is not None:
                place = census.places[where]
                text = f"{place.label}: partition {place.partition} {said}"
                found.append(Finding(Unit("named", home, names[0]), "named", where, text))
    return found


async def look_dynamic(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at the dynamic groups that had members in a partition: they are such."""
    found = []
    place = census.places[tag]
    async for step in census.walk(keys.key(tag, "dynamic"), "SSCAN"):
        numbers = [each for each in step if whole(each)]
        groups = dict(
            zip(numbers, await known_groups(census, place.env.directory, numbers), strict=True)
        )
        for entry in step:
            group = groups.get(entry)
            if group is not None and (
                group.deleting is not None
                or (group.document is not None and group.document.is_dynamic)
            ):
                continue
            text = (
                f"{place.label}: group {numbered(entry)} is noted as dynamic in partition"
                f" {place.partition}, and is not"
            )
            found.append(Finding(Unit("dynamic", tag, names[0]), "entry", entry, text))
    return found


async def look_noted(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at the partitions of an application: dynamic groups with members are noted there."""
    known = await book(census, tag)
    if known.is_going or known.rules is None:
        return []
    found = []
    for env in environments(census, tag):
        if env.directory != env.rules_home:
            continue
        for where in env.partitions:
            for part in in_steps([each.number for each in known.rules.dynamic], NUMBERS):
                declared = [keys.key(where, "dynamic"), keys.key(where, "count")]
                flat = await census.call("verify_dynamic", declared, list(part))
                for number, noted, count in zip(part, flat[::2], flat[1::2], strict=True):
                    if count is not None and not noted:
                        place = census.places[where]
                        text = (
                            f"{place.label}: group {number} has members in partition"
                            f" {place.partition}, and is not noted as dynamic there"
                        )
                        unit = Unit("noted", tag, names[0])
                        found.append(Finding(unit, "unnoted", where + b"%d" % number, text))
    return found


# --- what is left to do


async def look_unsettled(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at profiles of which something changed: each belongs there, and something did."""
    found = []
    place = census.places[tag]
    async for step in census.walk(keys.key(tag, "unsettled"), "ZSCAN"):
        entries = step[::2]
        rows = await _changed(census, tag, entries, 0)
        for mixed, since, (_, size, *_) in zip(entries, step[1::2], rows, strict=True):
            if not _is_of(place.env, tag, mixed) or not is_time(since):
                said = (
                    f"is unsettled since {shown(since)} in partition {place.partition}, and is no"
                    f" profile of it"
                )
            elif not size:
                said = "is unsettled, and nothing of it changed"
            else:
                continue
            text = f"{place.label}: profile {census.profile(tag, mixed)} {said}"
            found.append(Finding(Unit("unsettled", tag, names[0]), "entry", mixed, text))
    return found


async def look_changed(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at what changed of profiles: it is what rules can name, and they are unsettled."""
    found = []
    place = census.places[tag]
    for mixed, (since, size, *listed) in zip(
        names, await _changed(census, tag, names, NAMES), strict=True
    ):
        unit = Unit("changed", tag, mixed)
        who = f"{place.label}: profile {census.profile(tag, mixed)}"
        if not size:
            continue
        if not _is_of(place.env, tag, mixed):
            text = f"{who} changed in partition {place.partition}, and is no profile of it"
            found.append(Finding(unit, "stray", b"", text))
            continue
        if since is None:
            text = f"{who} changed, and is not unsettled"
            found.append(Finding(unit, "settled", b"", text))
        async for name in _names_of(census, tag, mixed, size, listed):
            if not is_name(name):
                text = f"{who} changed in {shown(name)}, which no rule tree can name"
                found.append(Finding(unit, "name", name, text))
    return found


async def _changed(
    census: Census, tag: bytes, names: list[bytes], limit: int
) -> list[tuple[bytes | None, int, *tuple[bytes, ...]]]:
    rows = []
    for part in in_steps(names, STEP):
        declared = [keys.key(tag, "unsettled")]
        rows += await census.call("verify_changed", declared, [limit, *part])
    return rows


async def _names_of(
    census: Census, tag: bytes, mixed: bytes, size: int, listed: list[bytes]
) -> AsyncIterator[bytes]:
    """Give what changed of a profile: as it came, or walked where that was too much."""
    if size <= NAMES:
        for name in listed:
            yield name
        return
    async for step in census.walk(keys.of_profile(tag, "changed", mixed), "SSCAN"):
        for name in step:
            yield name


def is_name(name: bytes) -> bool:
    """Tell whether rules may name something so: as an attribute, a group, a definition, a rule."""
    if name.startswith(b"\0"):
        return _NAME.fullmatch(name) is not None
    try:
        return bool(name.decode()) and b"\0" not in name
    except UnicodeDecodeError:
        return False


async def look_due(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at when rules are to be looked at again: of profiles that belong there, at a time.

    One that names a group or profile that is gone, or comes too early, does no harm.
    """
    found = []
    place = census.places[tag]
    async for step in census.walk(keys.key(tag, "due"), "ZSCAN"):
        for entry, at in zip(step[::2], step[1::2], strict=True):
            mixed, number = entry[: ids.SIZE], entry[ids.SIZE :]
            if not _is_of(place.env, tag, mixed) or not whole(number) or not 0 <= float(at) < 2**63:
                text = (
                    f"{place.label}: {shown(entry)} is due at {shown(at)} in partition"
                    f" {place.partition}, which cannot be"
                )
                found.append(Finding(Unit("due", tag, names[0]), "entry", entry, text))
    return found


async def look_turnover(census: Census, tag: bytes, names: list[bytes]) -> list[Finding]:
    """Look at what dynamic groups gained and lost in an hour: counts, that go by themselves."""
    found = []
    place = census.places[tag]
    cursor, left = b"0", list(dict.fromkeys(names))
    while left:
        done, cursor, *rows = await census.call(
            "verify_turnover", [keys.key(tag, "dynamic")], [cursor, STEP, *left[:STEP]]
        )
        for hour, milliseconds, counts in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
            unit = Unit("turnover", tag, hour)
            who = f"{place.label}: the turnover of hour {hour.decode()}"
            if milliseconds == -1:
                text = f"{who} in partition {place.partition} does not expire"
                found.append(Finding(unit, "endless", b"", text))
            for field, value in zip(counts[::2], counts[1::2], strict=True):
                if _TURNED.fullmatch(field) is None or not whole(value):
                    text = f"{who} has {shown(value)} as {shown(field)}, which is none"
                    found.append(Finding(unit, "count", field, text))
        left = left[done:]
    return found


def _is_of(env: Environment, tag: bytes, mixed: bytes) -> bool:
    return len(mixed) == ids.SIZE and env.home(mixed) == tag


def is_time(score: bytes) -> bool:
    """Tell whether a score is a time in microseconds, exact."""
    return 0 <= float(score) < 2**53
