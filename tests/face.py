"""The Group Identity face as tests speak to it: definitions, batches, what a user then has."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

from service import ids, keys
from service.worker import work

if TYPE_CHECKING:
    from service.environment import Environment
    from service.grouping import Rules
    from service.store import Store
    from tests.client import Answer, Api, Client

NOW_MS = int(os.environ.setdefault("TEST_NOW_MS", str(time.time_ns() // 1_000_000 - 3_600_000)))
"""An hour ago: times that tests give count from here, and none is later than its arrival.

Processes that a test starts count from the same moment.
"""


class Face:
    """One workspace, spoken to as one client. Users are known by a number: mpid, customer id."""

    def __init__(self, api: Api, client: Client, workspace: int) -> None:
        """Take who speaks, and the workspace spoken of."""
        self.api = api
        self.client = client
        self.workspace = workspace
        self.groups = f"/platform/workspaces/{workspace}/groups"

    async def define(
        self,
        *shares: tuple[str, str],
        named: str = "household",
        source: str = "$address",
        run: bool = True,
    ) -> Answer:
        """Create a definition, and have the job done that follows."""
        body = {
            "id": named,
            "source_user_attribute": source,
            "attributes": [{"id": name, "type": kind} for name, kind in shares],
        }
        answer = await self.client.post(self.groups, body)
        if run:
            await self.run()
        return answer

    async def change(self, named: str = "household", **fields: Any) -> Answer:
        """Change a definition, and have the job done that follows."""
        answer = await self.client.call("PUT", f"{self.groups}/{named}", fields, status=200)
        await self.run()
        return answer

    async def drop(self, named: str = "household") -> None:
        """Delete a definition, and have the job done that follows."""
        await self.client.delete(f"{self.groups}/{named}")
        await self.run()

    async def run(self) -> None:
        """Do what the worker does."""
        await work(self.api.store, grace_us=0)

    async def recompute(self, named: str = "household") -> None:
        """Ask for a run, and have it done."""
        await self.client.post(f"{self.groups}/{named}/recompute", None, 202)
        await self.run()

    async def send(self, *batches: dict[str, Any]) -> None:
        """Upload batches together."""
        answer = await self.client.post("/v2/bulkevents", list(batches), 202)
        assert not answer.content

    async def say(self, user: int, *deleted: str, **options: Any) -> None:
        """Upload one batch; see `batch`."""
        await self.send(batch(user, *deleted, **options))

    async def has(self, user: int, environment: str = "production") -> dict[str, Any] | None:
        """All attributes that a user has, inherited ones included; None: there is no such user."""
        path = f"/userprofile/v1/resolve/1/1/{self.workspace}?fields=user_attributes"
        body = {
            "environment_type": environment,
            "identity": {"type": "customer_id", "value": f"user {user}"},
        }
        answer = await self.client.call("POST", path, body)
        if answer.status == 404:
            return None
        assert answer.status == 200, answer
        shown: dict[str, Any] = answer.plain["user_attributes"]
        return shown

    async def inherits(self, user: int, environment: str = "production") -> dict[str, Any] | None:
        """What a user has of a group."""
        attributes = await self.has(user, environment)
        if attributes is None:
            return None
        return {name: value for name, value in attributes.items() if ":" in name}

    async def profile(self, user: int) -> str:
        """The profile id of a user in production."""
        application = await self.api.store.registry.application("demo")
        assert application is not None
        [found] = await self.api.store.profiles.resolve_identities(
            application.production, "customer_id", [f"user {user}"], create=False
        )
        assert found is not None
        return ids.text(found)

    async def erase(self, user: int) -> dict[str, Any]:
        """Erase a user everywhere."""
        answer = await self.client.delete(
            f"/api/v1/profiles/{await self.profile(user)}/?client_id=demo", status=200
        )
        counts: dict[str, Any] = answer.plain
        return counts

    async def instances(self, named: str = "household", query: str = "") -> list[dict[str, Any]]:
        """The instances of a definition: those of all pages."""
        found: list[dict[str, Any]] = []
        path: str | None = f"{self.groups}/{named}/instances{query}"
        while path is not None:
            answer = await self.client.get(path)
            found += answer.plain["results"]
            path = answer.plain["next"]
        return found

    async def instance(self, value: str, named: str = "household") -> dict[str, Any] | None:
        """One whole instance by its value; None: there is none."""
        found = [each for each in await self.instances(named) if each["value"] == value]
        if not found:
            return None
        [one] = found
        answer = await self.client.get(f"{self.groups}/{named}/instances/{one['id']}")
        whole: dict[str, Any] = answer.plain
        return whole


def batch(
    user: int,
    *deleted: str,
    at: int | dict[str, int] | None = None,
    environment: str | None = None,
    identities: dict[str, str] | None = None,
    **attributes: Any,
) -> dict[str, Any]:
    """A batch of a user, as of `at` ms after `NOW_MS` (of all attributes, or of each by name).

    Without it, as of its arrival. `address` stands for `$address`.
    """
    if "address" in attributes:
        attributes["$address"] = attributes.pop("address")
    gone = ["$address" if name == "address" else name for name in deleted]
    made: dict[str, Any] = {
        "mpid": user,
        "user_identities": {"customer_id": f"user {user}"} | (identities or {}),
    }
    if attributes:
        made["user_attributes"] = attributes
    if gone:
        made["deleted_user_attributes"] = gone
    if environment is not None:
        made["environment"] = environment
    if at is not None:
        made["events"] = [
            {
                "event_type": "user_attribute_change",
                "data": {
                    "user_attribute_name": name,
                    "timestamp_unixtime_ms": NOW_MS + (at if isinstance(at, int) else at[name]),
                    "deleted": name in gone,
                    "is_new_attribute": False,
                },
            }
            for name in [*attributes, *gone]
        ]
    return made


async def of_profile(store: Store, env: Environment, kind: str, mixed: bytes) -> dict[bytes, bytes]:
    """Read one of the hashes that the store keeps of a profile."""
    key = keys.of_profile(env.home(mixed), kind, mixed)
    found = await store.connection.command(key, "HGETALL", key)
    if isinstance(found, dict):
        return found
    return dict(zip(found[::2], found[1::2], strict=True))


def inherited(rules: Rules, listed: dict[bytes, bytes]) -> dict[str, Any]:
    """What a profile inherits, read from what its record lists as the schema of the keys says.

    Of one who belongs to one instance of each definition at most, as when nobody moves.
    """
    shared = {
        (definition.number, attribute.id): (definition.id, attribute.since)
        for definition in rules.definitions
        for attribute in definition.attributes
    }
    seen: dict[str, Any] = {}
    for held in listed.values():
        number, _, told, raw = held.split(b" ", 3)
        for name, value in json.loads(raw or b"{}").items():
            named, since = shared.get((int(number), name), ("", 2**62))
            if int(told) >= since:
                assert f"{named}:{name}" not in seen
                seen[f"{named}:{name}"] = value
    return seen
