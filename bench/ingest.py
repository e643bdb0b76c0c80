"""Users ingested per second, and where the time goes.

Uploads bulks of batches over some connections, to a server of its own. Each user has a customer id,
an e-mail address, an address shared with others and an attribute that the household aggregates.
First everybody is new, then everybody comes again with the other value. At the end the inherited
attributes of some are compared with what they have to be: what differs is an error.
"""

from __future__ import annotations

import time
from base64 import b64encode
from typing import TYPE_CHECKING, NamedTuple

import httpx
import msgspec

from bench.calls import Caller, Refused, Together, ask_all, latencies, request
from bench.measurement import Sample, Step
from bench.serving import cpu_seconds
from bench.start import own

if TYPE_CHECKING:
    from bench.measurement import Bench, Setting
    from bench.serving import Served

CHECKED = 200
"""Users whose view is looked at in the end."""


class Load(NamedTuple):
    """What is uploaded: how many users, how many in a household and in a bulk, and how."""

    users: int = 20_000
    household: int = 4
    bulk: int = 100
    connections: int = 4


def steps(bench: Bench) -> list[Step]:
    """Give two: of users who are new, and of the same ones when they come again."""
    load = Load(users=200, bulk=20, connections=2) if bench.smoke else Load()
    together = Together(lambda: _measure(bench, load))
    fixed: dict[str, Setting] = {
        "so many": load.users,
        "of a household": load.household,
        "of a bulk": load.bulk,
        "connections": load.connections,
    }
    return [
        Step("ingest", "belong", "once", "users/s", {"users": who, **fixed}, together.part(who))
        for who in ("new", "known")
    ]


def _measure(bench: Bench, load: Load) -> dict[str, Sample]:
    with own(bench) as served:
        define(served)
        return {
            "new": _checked(served, load, has_dog=True),
            "known": _checked(served, load, has_dog=False),
        }


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


def _checked(served: Served, load: Load, *, has_dog: bool) -> Sample:
    """Upload everybody once, then look at what some of them have inherited."""
    sample = _uploaded(served, load, has_dog=has_dog)
    return sample._replace(errors=sample.errors + _wrong(served, load, has_dog=has_dog))


def _uploaded(served: Served, load: Load, *, has_dog: bool) -> Sample:
    host, port = _address(served)
    login = f"Basic {b64encode(f'{served.key}:{served.secret}'.encode()).decode()}"
    requests = [
        request(login, "POST", "/v2/bulkevents", body) for body in bodies(load, has_dog=has_dog)
    ]
    processes = {"api us": served.api, "store us": served.store, "worker us": served.worker}
    before = {each: cpu_seconds(pid) for each, pid in processes.items() if pid}
    began = time.perf_counter()
    answers = ask_all(host, port, requests, load.connections)
    seconds = time.perf_counter() - began
    refused = [each for each in answers if each.status != httpx.codes.ACCEPTED]
    took = latencies(each.seconds for each in answers)
    return Sample(
        (load.users - len(refused) * load.bulk) / seconds,
        errors=len(refused),
        histogram=took,
        details={
            each: 1e6 * (cpu_seconds(processes[each]) - was) / load.users
            for each, was in before.items()
        }
        | {f"p{each}": float(took.get_value_at_percentile(each)) for each in (50, 99)},
    )


def _wrong(served: Served, load: Load, *, has_dog: bool) -> int:
    """Count users, of those looked at, who do not have what the household has."""
    wrong = 0
    path = f"/userprofile/v1/resolve/1/1/{served.workspace}?fields=user_attributes"
    with Caller(*_address(served)) as caller:
        for n in range(0, load.users, max(1, load.users // CHECKED)):
            body = {"identity": {"type": "customer_id", "value": f"c{n}"}}
            answer = caller.ask(request(f"Bearer {served.token}", "POST", path, body))
            try:
                found = answer.read()["user_attributes"].get("household:has_dog")
            except (Refused, KeyError):
                found = None
            wrong += found != str(has_dog).lower()
    return wrong


def _address(served: Served) -> tuple[str, int]:
    host, _, port = served.url.removeprefix("http://").partition(":")
    return host, int(port)
