"""What dynamic groups and set queries cost: `make bench-dynamic`.

Runs `belong serve` on data of its own with one API process, which has one core, and the store, the
worker and this client the other. Three questions: how many existing profiles a second a new rule
is built over; what it adds to a write of one attribute that 0, 10 and 100 rules name it; how long
the exact count and the first page of `and` of two groups take that have half of their members in
common. What comes out is compared with what it has to be.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click
import httpx
import msgspec

from bench.serving import server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.serving import Served

RULES = (0, 10, 100)
"""How many rules name the attribute that is written."""
BULK = 10_000
"""Profiles of one call."""


def profile(n: int) -> str:
    """Give the id of the n-th profile."""
    return str(UUID(int=n + 1))


class Bench:
    """A client of the server's application."""

    def __init__(self, served: Served) -> None:
        """Take the server."""
        self._client = httpx.Client(
            base_url=f"{served.url}/api/v1/applications/bench/",
            headers={"Authorization": f"Bearer {served.token}"},
            timeout=600,
        )
        self._served = served

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Call, and give the body of the answer."""
        answer = self._client.request(method, path, content=msgspec.json.encode(body))
        if not answer.is_success:
            raise SystemExit(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json()

    def upload(self, users: int) -> None:
        """Bring in users with attributes, 100 in a request."""
        for start in range(0, users, 100):
            batches = [
                {
                    "user_identities": {"customerid": f"c{n}"},
                    "user_attributes": {"spent": str(n % 1000), "city": f"City {n % 50}"},
                }
                for n in range(start, min(start + 100, users))
            ]
            httpx.post(
                f"{self._served.url}/v2/bulkevents",
                auth=(self._served.key, self._served.secret),
                content=msgspec.json.encode(batches),
                timeout=60,
            ).raise_for_status()

    def rule(self, name: str, tree: object) -> str:
        """Create a dynamic group; give its id."""
        made = self.call(
            "POST",
            "profile-groups/",
            {"name": name, "membership_type": "dynamic", "rule_tree": tree},
        )
        return str(made["id"])

    def built(self, group: str) -> Any:
        """Wait until a group is built, and give it."""
        while True:
            found = self.call("GET", f"profile-groups/{group}/")
            if found["status"]["state"] == "ready":
                return found
            time.sleep(0.02)

    def build(self, users: int) -> None:
        """Measure how long rules take over profiles that are there."""
        trees: Iterator[tuple[str, object, int]] = iter(
            (
                (
                    "one leaf",
                    {"attribute": "spent", "condition": "greater_than", "value": 499},
                    sum(n % 1000 > 499 for n in range(users)),
                ),
                (
                    "four leaves",
                    {
                        "operator": "AND",
                        "children": [
                            {"attribute": "spent", "condition": "between", "value": [250, 749]},
                            {
                                "operator": "OR",
                                "children": [
                                    {"attribute": "city", "condition": "is", "value": "city 7"},
                                    {"attribute": "city", "condition": "pattern", "value": "*1?"},
                                ],
                            },
                            {"attribute": "gone", "condition": "not_exists"},
                        ],
                    },
                    sum(
                        250 <= n % 1000 <= 749 and (n % 50 == 7 or 10 <= n % 50 <= 19)
                        for n in range(users)
                    ),
                ),
            )
        )
        for what, tree, expected in trees:
            began = time.perf_counter()
            group = self.rule(what, tree)
            found = self.built(group)
            seconds = time.perf_counter() - began
            if found["profile_count"] != expected:
                raise SystemExit(f"{what}: {found['profile_count']} members, and not {expected}")
            click.echo(
                f"a rule of {what:<12} built over {users:,} profiles, {expected:,} of them members:"
                f" {seconds:.1f} s, {users / seconds:,.0f} profiles/s"
            )

    def write(self, times: int) -> None:
        """Measure writes of an attribute that rules name, taking turns."""
        last = ""
        for many in RULES:
            for n in range(many):
                leaf = {"attribute": f"a{many}", "condition": "greater_than", "value": n}
                last = self.rule(f"rule {n} of {many}", leaf)
        self.built(last)
        path = str(self._client.base_url).replace("applications/bench/", "profiles/c0/")
        took: dict[int, list[float]] = {many: [] for many in RULES}
        held = {f"a{many}": "0" for many in RULES}
        for turn in range(times):
            for many in RULES:
                # The 0th turns nothing, each other one turns half of the rules. All are sent, for
                # they replace what is there.
                held[f"a{many}"] = str(many + 1 if turn % 2 else many // 2)
                body = {"attributes": [{"key": key, "value": held[key]} for key in held]}
                began = time.perf_counter()
                self.call("PATCH", f"{path}?client_id=bench", body)
                took[many].append(time.perf_counter() - began)
        for many, each in took.items():
            each.sort()
            added = statistics.median(each) - statistics.median(took[0])
            click.echo(
                f"a write of an attribute that {many:>3} rules name: p50"
                f" {1000 * statistics.median(each):.2f} ms (+{1000 * added:.2f}),"
                f" p99 {1000 * each[len(each) * 99 // 100]:.2f} ms"
            )

    def query(self, size: int, times: int) -> None:
        """Measure `and` of two groups that have half in common."""
        groups = [
            self.call("POST", "profile-groups/", {"name": f"query {at}"})["id"] for at in range(2)
        ]
        for at, group in enumerate(groups):
            for start in range(0, size, BULK):
                first = at * size // 2 + start
                ids = [profile(n) for n in range(first, first + min(BULK, size - start))]
                self.call("POST", f"profile-groups/{group}/members/", {"profile_ids": ids})
        query = {"and": [{"group": group} for group in groups]}
        first_pages, next_pages = [], []
        for _ in range(times):
            began = time.perf_counter()
            page = self.call("POST", "profile-groups/query/", {"query": query, "page_size": 100})
            first_pages.append(time.perf_counter() - began)
            if page["count"] != size - size // 2 or len(page["results"]) != 100:
                raise SystemExit(f"{page['count']} in common, and not {size - size // 2}")
            began = time.perf_counter()
            self.call("POST", page["next"], {"query": query, "page_size": 100})
            next_pages.append(time.perf_counter() - began)
        click.echo(
            f"`and` of two groups of {size:,}, half in common: exact count and first page"
            f" {statistics.median(first_pages):.2f} s, the next page"
            f" {statistics.median(next_pages):.2f} s (median of {times})"
        )


@click.command()
@click.option("--users", default=50_000, show_default=True, help="Profiles that rules go over.")
@click.option("--writes", default=500, show_default=True, help="Writes of each attribute.")
@click.option("--size", default=1_000_000, show_default=True, help="Members of each group.")
@click.option("--queries", default=5, show_default=True)
@click.option("--partitions", default=1, show_default=True)
def main(users: int, writes: int, size: int, queries: int, partitions: int) -> None:
    """Measure, and print rows."""
    with server(partitions) as served:
        bench = Bench(served)
        bench.upload(users)
        bench.build(users)
        bench.write(writes)
        bench.query(size, queries)


if __name__ == "__main__":
    main()
