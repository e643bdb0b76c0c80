"""The world, as the peers keep it: in Redis for two of them, in PostgreSQL for the third.

Not through their APIs, which would take long and is not what is measured. What is kept where is
written at the head of the peers' programs. Groups come into being a microsecond apart, in their
order, and members join in theirs.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import click
import msgspec
import redis

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bench.peers.postgres import Postgres
    from bench.world import Group, World

BATCH = 20_000
"""Memberships that are written together."""


SPARE = "5ba7e000-0000-4000-8000-000000000000"
"""A group of no world."""


class Row(NamedTuple):
    """A membership with the microsecond in which it began."""

    group: str
    profile: str
    joined_at_us: int


def load_redis(socket: str, world: World, name: str) -> None:
    """Write the world into an empty Redis. Not all of it was new: RuntimeError."""
    start_us = _start_us(world)
    written = 0
    with (
        redis.Redis(unix_socket_path=socket) as store,
        click.progressbar(
            length=world.shape.memberships, label=f"loading {name}", file=sys.stderr
        ) as bar,
    ):
        store.mset(
            {
                f"group:{group.id}": msgspec.json.encode(_document(group, at_us))
                for at_us, group in enumerate(world.groups, start_us)
            }
        )
        store.mset({f"group:{group.id}:count": len(group.members) for group in world.groups})
        for batch in _batches(_rows(world, start_us)):
            members: dict[str, dict[str, float]] = defaultdict(dict)
            groups: dict[str, list[str]] = defaultdict(list)
            for row in batch:
                members[row.group][row.profile] = row.joined_at_us
                groups[row.profile].append(row.group)
            pipeline = store.pipeline(transaction=False)
            for profile, found in groups.items():
                pipeline.sadd(f"profile:{profile}:groups", *found)
            for group_id, joined in members.items():
                pipeline.zadd(f"group:{group_id}:members", joined)
            written += sum(pipeline.execute()[len(groups) :])
            bar.update(len(batch))
    _require(world, written, name)


@contextmanager
def spare_group(socket: str, profiles: Iterable[str]) -> Iterator[str]:
    """Have a group in Redis that nothing else looks at; it and what such profiles are in goes."""
    document = {"id": SPARE, "name": "Spare", "created_at": "2000-01-01T00:00:00.000000Z"}
    keys = [f"group:{SPARE}", f"group:{SPARE}:count", f"group:{SPARE}:members"]
    with redis.Redis(unix_socket_path=socket) as store:
        store.mset({keys[0]: msgspec.json.encode(document), keys[1]: 0})
        try:
            yield SPARE
        finally:
            store.unlink(*keys, *(f"profile:{each}:groups" for each in profiles))


def load_postgres(database: Postgres, world: World, name: str) -> None:
    """Write the world into the empty tables. Not all of it arrived: RuntimeError."""
    start_us = _start_us(world)
    database.copy(
        "groups (id, name, is_active, description, profile_count, custom_id, created_at,"
        " attributes)",
        (
            (
                *(group.id, group.name, "true", group.description, len(group.members)),
                *(group.custom_id, _moment(at_us)),
                msgspec.json.encode(_attributes(group)).decode(),
            )
            for at_us, group in enumerate(world.groups, start_us)
        ),
    )
    with click.progressbar(
        _rows(world, start_us),
        length=world.shape.memberships,
        label=f"loading {name}",
        file=sys.stderr,
        update_min_steps=BATCH,
    ) as bar:
        database.copy(
            "memberships (group_id, profile_id, created_at)",
            ((row.group, row.profile, _moment(row.joined_at_us)) for row in bar),
        )
    # What a server that has run for a day has done by itself.
    database.run("VACUUM (ANALYZE)")
    database.run("CHECKPOINT")
    _require(world, int(database.run("SELECT count(*) FROM memberships")), name)


def _start_us(world: World) -> int:
    """Give a moment from which on everything fits in before now."""
    return time.time_ns() // 1000 - len(world.groups) - world.shape.memberships


def _rows(world: World, start_us: int) -> Iterator[Row]:
    for place, (group, profile) in enumerate(world.memberships()):
        yield Row(group, profile, start_us + len(world.groups) + place)


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    left = iter(rows)
    while batch := list(itertools.islice(left, BATCH)):
        yield batch


def _document(group: Group, at_us: int) -> dict[str, object]:
    return {
        "id": group.id,
        "name": group.name,
        "is_active": True,
        "description": group.description,
        "custom_id": group.custom_id,
        "created_at": _moment(at_us),
        "attributes": _attributes(group),
        "membership_type": "static",
    }


def _attributes(group: Group) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in group.attributes]


def _moment(at_us: int) -> str:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_us)
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def _require(world: World, written: int, name: str) -> None:
    if written != world.shape.memberships:
        raise RuntimeError(f"{name} has {written:,} memberships of {world.shape.memberships:,}")
