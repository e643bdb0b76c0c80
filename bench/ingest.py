"""Users ingested per second, and where the time goes: `make bench-ingest`.

Runs `belong serve` on data of its own with one API process, gives that one core, and the store, the
worker and this client the other, and uploads bulks of batches over some connections. Each user has
a customer id, an e-mail address, an address shared with others and an attribute that the household
aggregates. First everybody is new, then everybody comes again with the other value. At the end the
inherited attributes of some are compared with what they have to be.
"""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from typing import Any, NamedTuple

import click
import httpx
import msgspec

from bench.serving import Served, cpu_seconds, server

CHECKED = 200
"""Users whose view is looked at in the end."""


class Load(NamedTuple):
    """What is uploaded: how many users, how many in a household and in a bulk, and how."""

    users: int
    household: int
    bulk: int
    connections: int


def define(served: Served) -> None:
    """Make users of one address a household that shares whether it has a dog."""
    httpx.post(
        f"{served.url}/platform/workspaces/{served.workspace}/groups",
        headers={"Authorization": f"Bearer {served.token}"},
        json={
            "id": "household",
            "source_user_attribute": "$address",
            "attributes": [{"id": "has_dog", "type": "boolean_or"}],
        },
    ).raise_for_status()


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
        define(served)
        asyncio.run(run(served, load, "new users", has_dog=True))
        asyncio.run(check(served, load, has_dog=True))
        asyncio.run(run(served, load, "known users", has_dog=False))
        asyncio.run(check(served, load, has_dog=False))


if __name__ == "__main__":
    main()
