"""What dynamic groups and set queries cost.

On servers of its own. Three questions: how many existing profiles a second a new rule is built
over; what it adds to a write of one attribute that 0, 10 and 100 rules name it; how long the exact
count and the pages of `and` of two groups take that have half of their members in common. What
comes out is compared with what it has to be: what differs is an error.
"""

from __future__ import annotations

import random
import statistics
import time
from base64 import b64encode
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID

from bench.calls import Caller, Together, ask_all, latencies, request
from bench.measurement import Sample, Step
from bench.start import Kept, application, filled, own
from service.groups import NewGroup

if TYPE_CHECKING:
    from collections.abc import Callable

    from hdrh.histogram import HdrHistogram

    from bench.measurement import Bench, Setting
    from bench.serving import Served
    from service.store import Store

RULES, SMOKE_RULES = (0, 10, 100), (0, 2, 4)
"""How many rules name the attribute that is written."""
USERS, SMOKE_USERS = 20_000, 200
"""Profiles that rules are built over."""
UPLOADED = 100
"""Users of a request."""
WRITES, SMOKE_WRITES = 300, 4
"""Of each attribute."""
SIZE, SMOKE_SIZE = 1_000_000, 1_000
"""Members of each of the groups that are queried."""
QUERIES, SMOKE_QUERIES = 5, 1
PAGE = 100
FILLED = 100_000
"""Ids that are added at a time."""
SEED = 8
BUILT_SECONDS = 600.0
"""How long a rule may take."""


class Rule(NamedTuple):
    """A tree, and of how many users it is true."""

    tree: object
    members: int


def steps(bench: Bench) -> list[Step]:
    """Give all: rules built, attributes written, pages of a query."""
    users, named, writes, size, queries = (
        (SMOKE_USERS, SMOKE_RULES, SMOKE_WRITES, SMOKE_SIZE, SMOKE_QUERIES)
        if bench.smoke
        else (USERS, RULES, WRITES, SIZE, QUERIES)
    )
    kept = Kept(lambda store: _fill(store, size))
    ruled = Together(lambda: _measure_rules(bench, users, named, writes))
    queried = Together(lambda: _measure_query(bench, kept, size, queries))
    return [
        *(
            _step("rule built", "profiles/s", {"rule": name, "profiles": users}, ruled.part(name))
            for name in _rules(users)
        ),
        *(
            _step("write an attribute", "us", {"rules that name it": many}, ruled.part(str(many)))
            for many in named
        ),
        *(
            _step("and of two groups", "s", {"page": page, "members": size}, queried.part(page))
            for page in ("first", "next")
        ),
    ]


def _step(
    workload: str, unit: str, settings: dict[str, Setting], measure: Callable[[], Sample]
) -> Step:
    return Step(workload, "belong", "once", unit, settings, measure)


# Rules.


class Client:
    """Somebody who calls the application. What is refused is raised as calls.Refused."""

    def __init__(self, token: str, caller: Caller) -> None:
        """Take who calls, and over which connection."""
        self._token = token
        self._caller = caller

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Call the application, and give the body of the answer."""
        return self.timed(method, f"/api/v1/applications/bench/{path}", body)[0]

    def timed(self, method: str, path: str, body: object = None) -> tuple[Any, float]:
        """Call, and give the body of the answer and the seconds that it took."""
        answer = self._caller.ask(request(f"Bearer {self._token}", method, path, body))
        return answer.read(), answer.seconds

    def rule(self, name: str, tree: object) -> str:
        """Create a dynamic group; give its id."""
        body = {"name": name, "membership_type": "dynamic", "rule_tree": tree}
        return str(self.call("POST", "profile-groups/", body)["id"])

    def built(self, group: str) -> Any:
        """Wait until a group is built, and give it. TimeoutError after ten minutes."""
        deadline = time.monotonic() + BUILT_SECONDS
        while True:
            found = self.call("GET", f"profile-groups/{group}/")
            if found["status"]["state"] == "ready":
                return found
            if time.monotonic() > deadline:
                raise TimeoutError(f"a rule is not built after {BUILT_SECONDS:.0f} s")
            time.sleep(0.02)


def _measure_rules(
    bench: Bench, users: int, named: tuple[int, ...], writes: int
) -> dict[str, Sample]:
    with own(bench) as served:
        host, _, port = served.url.removeprefix("http://").partition(":")
        _upload(served, host, int(port), users)
        with Caller(host, int(port)) as caller:
            client = Client(served.token, caller)
            return _build(client, users) | _write(client, named, writes)


def _upload(served: Served, host: str, port: int, users: int) -> None:
    """Bring in users with attributes. One bulk that is refused: RuntimeError."""
    login = f"Basic {b64encode(f'{served.key}:{served.secret}'.encode()).decode()}"
    everybody = [
        {
            "user_identities": {"customerid": f"c{n}"},
            "user_attributes": {"spent": str(_spent(n)), "city": f"City {n % 50}"},
        }
        for n in range(users)
    ]
    requests = [
        request(login, "POST", "/v2/bulkevents", everybody[start : start + UPLOADED])
        for start in range(0, users, UPLOADED)
    ]
    for answer in ask_all(host, port, requests, connections=2):
        if not answer.is_success:
            raise RuntimeError(f"users were refused: {answer.status} {answer.body[:300]!r}")


def _spent(n: int) -> int:
    """Give what a user has spent: of any thousand in a row everybody something else."""
    return n * 7919 % 1000


def _rules(users: int) -> dict[str, Rule]:
    """Give rules by name, with how many of the users they are true of."""
    return {
        "one leaf": Rule(
            {"attribute": "spent", "condition": "greater_than", "value": 499},
            sum(_spent(n) > 499 for n in range(users)),
        ),
        "four leaves": Rule(
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
                250 <= _spent(n) <= 749 and (n % 50 == 7 or 10 <= n % 50 <= 19)
                for n in range(users)
            ),
        ),
    }


def _build(client: Client, users: int) -> dict[str, Sample]:
    """Measure how long rules take over profiles that are there."""
    samples = {}
    for name, rule in _rules(users).items():
        began = time.perf_counter()
        found = client.built(client.rule(name, rule.tree))
        seconds = time.perf_counter() - began
        samples[name] = Sample(
            users / seconds,
            errors=abs(found["profile_count"] - rule.members),
            details={"members": float(found["profile_count"])},
        )
    return samples


def _write(client: Client, named: tuple[int, ...], times: int) -> dict[str, Sample]:
    """Measure writes of an attribute that rules name, taking turns.

    In the end the rules whose value it has passed have to have the one profile, the others nobody.
    """
    rules = {
        many: [
            client.rule(
                f"rule {n} of {many}",
                {"attribute": f"a{many}", "condition": "greater_than", "value": n},
            )
            for n in range(many)
        ]
        for many in named
    }
    for groups in rules.values():
        for group in groups:
            client.built(group)
    took: dict[int, list[float]] = {many: [] for many in named}
    held = dict.fromkeys(named, 0)
    for turn in range(times):
        for many in named:
            # The 0th turns nothing, each other one turns half of the rules. All are sent, for they
            # replace what is there.
            held[many] = many + 1 if turn % 2 else many // 2
            body = {
                "attributes": [{"key": f"a{key}", "value": str(held[key])} for key in held],
            }
            _, seconds = client.timed("PATCH", "/api/v1/profiles/c0/?client_id=bench", body)
            took[many].append(seconds)
    samples = {}
    without = _p50(latencies(took[0]))
    for many, groups in rules.items():
        counts = [
            client.call("GET", f"profile-groups/{group}/")["profile_count"] for group in groups
        ]
        histogram = latencies(took[many])
        p50 = _p50(histogram)
        samples[str(many)] = Sample(
            p50,
            errors=sum(count != (held[many] > n) for n, count in enumerate(counts)),
            histogram=histogram,
            details={
                "p50": p50,
                "p99": float(histogram.get_value_at_percentile(99)),
                "added": p50 - without,
            },
        )
    return samples


def _p50(histogram: HdrHistogram) -> float:
    return float(histogram.get_value_at_percentile(50))


# A query.


async def _fill(store: Store, size: int) -> None:
    """Make two groups, of the ids 1 and 2: the last half of the one is the first of the other."""
    env = (await application(store)).production
    packed = random.Random(SEED).randbytes(16 * (size + size // 2))
    for at, first in ((1, 0), (2, size // 2)):
        group = await store.groups.create_group(
            env, NewGroup(name=f"query {at}", id=str(UUID(int=at)))
        )
        for start in range(first, first + size, FILLED):
            part = packed[16 * start : 16 * min(start + FILLED, first + size)]
            await store.members.add_members(env, group.number, part)


def _measure_query(bench: Bench, kept: Kept, size: int, queries: int) -> dict[str, Sample]:
    """Ask a few times, and give the medians. A wrong count or a page too short is an error."""
    query = {"and": [{"group": str(UUID(int=at))} for at in (1, 2)]}
    body = {"query": query, "page_size": PAGE}
    took: dict[str, list[float]] = {"first": [], "next": []}
    errors = dict.fromkeys(took, 0)
    with filled(bench, kept) as running, Caller("127.0.0.1", running.port) as caller:
        client = Client(running.token, caller)
        for _ in range(queries):
            path, query_string = "/api/v1/applications/bench/profile-groups/query/", ""
            seen: set[str] = set()
            for page, each in took.items():
                found, seconds = client.timed("POST", path + query_string, body)
                each.append(seconds)
                seen.update(row["id"] for row in found["results"])
                errors[page] += len(found["results"]) != PAGE
                errors[page] += found["count"] != size - size // 2
                query_string = f"?{urlsplit(found['next']).query}"
            # Nobody is on both pages.
            errors["next"] += len(seen) != 2 * PAGE
    return {
        page: Sample(statistics.median(each), errors[page], histogram=latencies(each))
        for page, each in took.items()
    }
