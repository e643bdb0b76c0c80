"""The key schema: every key that exists, built and parsed here and nowhere else.

Below ``{7}`` is a directory (7 is an environment's number), below ``{7.12}`` a partition; the
braces are the hash tag, so all keys of one tag live in one slot. Scripts build their computed keys
from the same names (their headers list them). Values may hold any character: they are
length-prefixed or come last, never joined.

=========================================== ====== =================================================
key                                         type   holds
=========================================== ====== =================================================
``{belong}:format``                         string storage format, `FORMAT`
``{belong}:applications``                   hash   number -> document
``{belong}:client_ids``, ``:workspaces``    hash   client id, workspace id -> number
``{belong}:credentials``                    hash   credential id -> document
``{belong}:deleted``                        hash   client id -> when its application was deleted
``{belong}:keys``                           hash   kid -> signing key
``{belong}:numbers``                        hash   counters: application, environment, workspace
``{belong}:version``                        string raised by every change of the registry
``{7}:group:<n>``                           hash   document of group number n, and its version
``{7}:group_ids``, ``{7}:group_custom_ids`` hash   id, custom id -> n
``{7}:numbers``                             string the last group number given out
``{7}:version``                             string raised by every change of the directory
``{7}:groups``, ``{7}:inactive``            zset   group numbers, score n
``{7}:group_names:<name>`` …                zset   active groups by name, type, attribute; the same
                                                   of inactive ones under ``inactive_…``
``{7}:attribute:<length>:<key>[=<value>]``  zset   groups by attribute key, and by key and value
``{7}:intents``, ``{7}:deleting``           zset   n -> version: states to install, groups to sweep
``{7}:rules``                               string definitions, which groups are dynamic, and their
                                                   version (production's)
``{7}:jobs``                                hash   id -> job, of the application (production's)
``{7}:installing``                          string version of rules being told to the partitions
``{7}:weekly``                              string when the last weekly run was due, in us
``{7}:built``                               hash   n -> version of the rules by which a dynamic
                                                   group was built; ``wanted``, ``whole``: when a
                                                   job over all was wanted last, and which was done
``{7}:allowance:<caller>``                  string when a caller's allowance is whole again, in us;
                                                   expires then
``{7.p}:m:<id>``                            hash   memberships of a profile: n -> joined_at in us;
                                                   ``d``: how many of them are derived
``{7.p}:g:<n>:<depth>:<prefix>``            zset   one segment of a group's members, scores 0
``{7.p}:count``, ``{7.p}:shape``            hash   n -> members here, and `FILLER`; n -> number of
                                                   segments
``{7.p}:state``                             hash   n -> ``<version> <letter>``; absent means active
``{7.p}:erasing``                           set    profiles being erased
``{7.p}:profile:<id>``                      hash   nickname, custom_id, custom_data, mpid,
                                                   created_at, seq
``{7.p}:attributes:<id>``                   hash   attribute -> ``<time> <since> <JSON>``, in us;
                                                   ``<time>`` alone where it was deleted
``{7.p}:identities:<id>``                   hash   what resolves to the profile -> since when
``{7.p}:fence:<id>``                        string the latest given-up attempt to take an identity
``{7.q}:identity:<bucket>``                 hash   identity -> mixed id and since,
                                                   or a reservation
``{7.q}:reserved``                          zset   open reservations: bucket and identity -> attempt
``{7.p}:rules``, ``{7.p}:watch``            string version of the rules; attributes whose change
                                            , set  makes a profile dirty
``{7.p}:dirty``                             zset   mixed ids whose derived data is behind -> since
``{7.p}:instances:<id>``                    hash   instances that a profile contributes to ->
                                                   ``<number> <version> <rules> <JSON values>``
``{7.p}:named``                             set    what rule trees name: attributes; static groups,
                                                   NUL and n (0: having any fact at all); what a
                                                   definition shares, NUL, ``:`` and its number;
                                                   NUL and ``!`` while names come in several parts
``{7.p}:changed:<id>``                      set    what of that changed of a profile, and rules have
                                                   yet to follow; NUL, ``=``, n: a rule to look at
``{7.p}:unsettled``                         zset   mixed ids that have such -> since
``{7.p}:due``                               zset   mixed id and n -> when time alone may turn the
                                                   rule of dynamic group n, in us; more than needed
                                                   is harmless, a wake-up call
``{7.p}:dynamic``                           set    dynamic groups that have had members here
``{7.p}:turnover:<hour>``                   hash   ``+<n>``, ``-<n>``: how many a dynamic group
                                                   gained and lost in an hour since 1970; expires
``{7.p}:requests:<id>``                     zset   ingested batches: hash of key and request -> when
``{7.q}:instance:<iid>``                    hash   number, value, rules, limit, version; mixed id ->
                                                   ``<seq> <since> <order> <JSON>``
``{7.q}:contributors:<iid>``                zset   order -> since: who contributes, first ones count
``{7.q}:formers:<iid>``                     zset   mixed ids that counted, and the version at which
                                                   they no longer did
``{7.q}:stale``                             zset   instances whose members are not yet told -> since
``{7.q}:ended``                             zset   instance and mixed id -> seq of an ended
                                                   contribution; instance -> its last version
``{7.q}:index:<number>:<bucket>``           zset   instances of a definition, scores 0
``{7.p}:none``                              -      never exists; last key of every script call
=========================================== ====== =================================================
"""

from __future__ import annotations

import re
from binascii import crc_hqx
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

FORMAT = b"1"
"""Storage format. A server that holds another one is refused at start."""

FILLER = b"-"
"""Field of `count` with 65 bytes that say nothing: they make a small hash a table, too."""

SLOTS = 16384
BUCKETS = 65536
"""Identity buckets in a partition: at 50 identities each, 3 million fit without large hashes."""

REGISTRY = b"{belong}"
CHANGES = b"belong:changes"
"""Channel of directory changes: ``<environment> <group number> <version>``."""

IDENTITY_CODES: dict[str, str] = {
    "customer_id": "c",
    "email": "e",
    "mpid": "m",
    "facebook": "f",
    "facebookcustomaudienceid": "fa",
    "google": "g",
    "microsoft": "ms",
    "twitter": "t",
    "yahoo": "y",
    "alias": "a",
    "other": "o",
    **{f"other{n}": f"o{n}" for n in range(2, 11)},
    "mobile_number": "p",
    "phone_number_2": "p2",
    "phone_number_3": "p3",
}
"""Identity type -> its short code: an identity's field is ``<code>:<value>``."""
IDENTITY_KINDS = {code: kind for kind, code in IDENTITY_CODES.items()}

DIRECTORY_KINDS = frozenset({
    "group", "group_ids", "group_custom_ids", "numbers", "version", "groups", "inactive",
    "group_names", "group_types", "attribute", "inactive_names", "inactive_types",
    "inactive_attribute", "intents", "deleting", "allowance", "rules", "jobs", "installing",
    "weekly", "built",
})  # fmt: skip
PARTITION_KINDS = frozenset({
    "m", "g", "count", "shape", "state", "erasing", "profile", "attributes", "identities", "fence",
    "identity", "reserved", "dirty", "rules", "watch", "due", "instance", "stale",
    "instances", "requests", "contributors", "formers", "ended", "index", "named", "changed",
    "unsettled", "dynamic", "turnover",
})  # fmt: skip
REGISTRY_KINDS = frozenset({
    "format", "applications", "client_ids", "workspaces", "credentials", "deleted", "keys",
    "numbers", "version",
})  # fmt: skip

EXPIRING = frozenset({"allowance", "fence", "requests", "turnover"})
"""Kinds of keys that go by themselves: what a deleted application may leave behind."""


class Key(NamedTuple):
    """A parsed key: its tag without braces, its kind, and what comes after it (bytes, raw)."""

    tag: bytes
    kind: str
    rest: bytes


def slot_of(tag: bytes) -> int:
    """Hash slot of a tag (given without braces): CRC-16/XMODEM mod 16384, as servers do."""
    return crc_hqx(tag, 0) % SLOTS


def partition_tags(environment: int, partitions: int) -> tuple[str, ...]:
    """Tags of an environment's partitions, spread evenly over the slots.

    Partition p of B gets a tag in the p-th of B equal ranges of slots: suffixes are tried in order
    until one falls there, about B tries each. One partition alone lies wherever it falls.
    """
    return tuple(_tag_in(environment, p, partitions) for p in range(partitions))


def _tag_in(environment: int, partition: int, partitions: int) -> str:
    low, high = partition * SLOTS // partitions, (partition + 1) * SLOTS // partitions
    plain = f"{environment}.{partition}"
    tag, tries = plain, 0
    while not low <= slot_of(tag.encode()) < high:
        tries += 1
        tag = f"{plain}.{tries}"
    return tag


def directory(environment: int) -> bytes:
    """Tag of an environment's directory, with its braces."""
    return b"{%d}" % environment


def partition(tag: str) -> bytes:
    """Tag of a partition as kept in the registry, with its braces."""
    return b"{" + tag.encode() + b"}"


def key(tag: bytes, kind: str) -> bytes:
    """Key of a kind that has nothing after its name, below a tag with braces."""
    return tag + b":" + kind.encode()


def none(tag: bytes) -> bytes:
    """Give the key that never exists: the last KEY of every script call."""
    return tag + b":none"


def group(tag: bytes, number: int) -> bytes:
    """Document of a group."""
    return tag + b":group:%d" % number


def memberships(tag: bytes, mixed: bytes) -> bytes:
    """Memberships of a profile."""
    return tag + b":m:" + mixed


def segment(tag: bytes, number: int, depth: int, prefix: int) -> bytes:
    """One segment of a group's members."""
    return tag + b":g:%d:%d:%d" % (number, depth, prefix)


def of_profile(tag: bytes, kind: str, mixed: bytes) -> bytes:
    """Give a key that belongs to one profile: profile, attributes, instances and the like."""
    return tag + b":" + kind.encode() + b":" + mixed


def of_instance(tag: bytes, kind: str, iid: bytes) -> bytes:
    """Give a key that belongs to one instance: instance, contributors, formers."""
    return tag + b":" + kind.encode() + b":" + iid


INDEX_BUCKETS = 1024
"""Buckets of a definition's instances in a partition: a million instances are 1,000 in each."""


def instance_bucket(iid: bytes) -> int:
    """Bucket of an instance in the index of its definition: the leading ten bits."""
    return int.from_bytes(iid[:2], "big") >> 6


def instance_index(tag: bytes, number: int, bucket: int) -> bytes:
    """Give one bucket of the instances of a definition."""
    return tag + b":index:%d:%d" % (number, bucket)


def named_group(number: int) -> bytes:
    """Give how `named` and `changed` call a static group; 0: having any fact at all."""
    return b"\0%d" % number


def named_definition(number: int) -> bytes:
    """Give how `named` and `changed` call what the definition of a number shares."""
    return b"\0:%d" % number


def named_rule(number: int) -> bytes:
    """Give how `changed` calls the rule of a dynamic group itself."""
    return b"\0=%d" % number


def turnover(tag: bytes, hour: int) -> bytes:
    """Give what dynamic groups gained and lost in an hour (hours since 1970)."""
    return tag + b":turnover:%d" % hour


def identity_bucket(tag: bytes, bucket: int) -> bytes:
    """Give a bucket of identities."""
    return tag + b":identity:%d" % bucket


def identity_field(kind: str, value: str) -> bytes:
    """Field of an identity in its bucket."""
    return f"{IDENTITY_CODES[kind]}:{value}".encode()


def parse_identity(field: bytes) -> tuple[str, str]:
    """Type and value of an identity field. A field of no known type is a ValueError."""
    code, colon, value = field.decode().partition(":")
    if not colon or code not in IDENTITY_KINDS:
        message = f"{field!r} is of no known identity type"
        raise ValueError(message)
    return IDENTITY_KINDS[code], value


def allowance(tag: bytes, caller: str) -> bytes:
    """Give what a caller may do yet: a key that expires."""
    return tag + b":allowance:" + caller.encode()


def group_index(tag: bytes, *, active: bool) -> bytes:
    """All active, or all inactive groups."""
    return key(tag, "groups" if active else "inactive")


def name_index(tag: bytes, name: str, *, active: bool) -> bytes:
    """Give groups of one name."""
    return key(tag, "group_names:" if active else "inactive_names:") + name.encode()


def type_index(tag: bytes, membership_type: str, *, active: bool) -> bytes:
    """Give static, or dynamic groups."""
    return key(tag, "group_types:" if active else "inactive_types:") + membership_type.encode()


def attribute_index(tag: bytes, name: str, value: str | None, *, active: bool) -> bytes:
    """Give groups that have an attribute key, or (with a value) that key with that value."""
    raw = name.encode()
    found = key(tag, "attribute:" if active else "inactive_attribute:") + b"%d:" % len(raw) + raw
    return found if value is None else found + b"=" + value.encode()


def group_indexes(
    tag: bytes,
    *,
    name: str,
    membership_type: str,
    attributes: Iterable[tuple[str, str]],
    active: bool,
) -> set[bytes]:
    """Every index that a group of this name, type and attributes stands in."""
    found = {
        group_index(tag, active=active),
        name_index(tag, name, active=active),
        type_index(tag, membership_type, active=active),
    }
    for attribute, value in attributes:
        found.add(attribute_index(tag, attribute, None, active=active))
        found.add(attribute_index(tag, attribute, value, active=active))
    return found


_KEY = re.compile(rb"\{([^}]*)\}:([a-z_]+)(?::(.*))?", re.DOTALL)
_MIXED = 16
_REST: dict[str, re.Pattern[bytes]] = {
    "group": re.compile(rb"[1-9]\d*"),
    "g": re.compile(rb"(0|[1-9]\d*):\d+:\d+"),
    "identity": re.compile(rb"\d+"),
    "index": re.compile(rb"[1-9]\d*:\d+"),
    "turnover": re.compile(rb"\d+"),
    "attribute": re.compile(rb"\d+:.*", re.DOTALL),
    "inactive_attribute": re.compile(rb"\d+:.*", re.DOTALL),
}
_OF_ONE = frozenset({
    "m", "profile", "attributes", "identities", "fence", "instances", "requests",
    "instance", "contributors", "formers", "changed",
})  # fmt: skip
"""Kinds with 16 bytes after them: a mixed id, or that of an instance."""
_OPEN_REST = frozenset({
    "group_names", "group_types", "inactive_names", "inactive_types", "allowance",
})  # fmt: skip


def parse(raw: bytes) -> Key | None:
    """Give the parts of a key, or None where the schema has no such key."""
    match = _KEY.fullmatch(raw)
    if match is None:
        return None
    tag, kind, rest = match[1], match[2].decode(), match[3]
    known = (
        REGISTRY_KINDS if tag == b"belong" else PARTITION_KINDS if b"." in tag else DIRECTORY_KINDS
    )
    if kind not in known:
        return None
    if kind in _OF_ONE:
        fits = rest is not None and len(rest) == _MIXED
    elif kind in _REST:
        fits = rest is not None and _REST[kind].fullmatch(rest) is not None
    elif kind in _OPEN_REST:
        fits = rest is not None
    else:
        fits = rest is None
    return Key(tag, kind, rest or b"") if fits else None
