"""The application object: what is reachable, for whom, and what happens when things break."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from typing import TYPE_CHECKING, Any

import falcon.testing
import pytest

from service import auth
from service.app import ROUTES, create_app, operations
from service.config import Config
from service.errors import ScriptFailed, Unavailable, Unusable
from service.faces import is_identity
from service.store import Store
from tests import backings
from tests.client import DEMO, GROUPS, P1, P2, Api, Client, filled, opened

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = "/api/v1/applications/{cid}"
WORKSPACE = "/platform/workspaces/{ws}"
TABLE = {
    ("GET", "/healthz"): None,
    ("GET", "/readyz"): None,
    ("GET", "/metrics"): None,
    ("POST", "/oauth/token"): None,
    ("GET", "/openapi.json"): None,
    ("GET", "/docs"): None,
    ("GET", "/docs/{file}"): None,
    ("GET", ROOT): None,
    ("GET", f"{ROOT}/profile"): None,
    ("POST", f"{ROOT}/profile"): None,
    ("PATCH", f"{ROOT}/profile"): None,
    ("GET", "/api/v1/profiles/{pid}"): "profiles:read",
    ("PATCH", "/api/v1/profiles/{pid}"): "profiles:write",
    ("DELETE", "/api/v1/profiles/{pid}"): "profiles:write",
    ("GET", f"{ROOT}/profile-groups"): "groups:read",
    ("POST", f"{ROOT}/profile-groups"): "groups:write",
    ("POST", f"{ROOT}/profile-groups/preview"): "members:read",
    ("POST", f"{ROOT}/profile-groups/query"): "members:read",
    ("GET", f"{ROOT}/profile-groups/{{gid}}"): "groups:read",
    ("POST", f"{ROOT}/profile-groups/{{gid}}"): "groups:write",
    ("PUT", f"{ROOT}/profile-groups/{{gid}}"): "groups:write",
    ("PATCH", f"{ROOT}/profile-groups/{{gid}}"): "groups:write",
    ("DELETE", f"{ROOT}/profile-groups/{{gid}}"): "groups:write",
    ("GET", f"{ROOT}/profile-groups/{{gid}}/members"): "members:read",
    ("POST", f"{ROOT}/profile-groups/{{gid}}/members"): "members:write",
    ("PUT", f"{ROOT}/profile-groups/{{gid}}/members"): "members:write",
    ("DELETE", f"{ROOT}/profile-groups/{{gid}}/members"): "members:write",
    ("GET", f"{ROOT}/profile-groups/{{gid}}/members/{{pid}}"): "members:read",
    ("DELETE", f"{ROOT}/profile-groups/{{gid}}/members/{{pid}}"): "members:write",
    ("GET", f"{ROOT}/profile-groups/{{gid}}/members/{{pid}}/explain"): "members:read",
    ("GET", f"{ROOT}/profiles/{{pid}}/profile-groups"): "members:read",
    ("POST", f"{ROOT}/memberships/check"): "members:read",
    ("POST", f"{ROOT}/memberships/bulk"): "members:write",
    ("GET", f"{WORKSPACE}/groups"): "definitions:read",
    ("POST", f"{WORKSPACE}/groups"): "definitions:write",
    ("GET", f"{WORKSPACE}/groups/{{did}}"): "definitions:read",
    ("PUT", f"{WORKSPACE}/groups/{{did}}"): "definitions:write",
    ("DELETE", f"{WORKSPACE}/groups/{{did}}"): "definitions:write",
    ("GET", f"{WORKSPACE}/groups/{{did}}/instances"): "definitions:read",
    ("GET", f"{WORKSPACE}/groups/{{did}}/instances/{{iid}}"): "definitions:read",
    ("GET", f"{WORKSPACE}/groups/{{did}}/instances/{{iid}}/members"): "definitions:read",
    ("POST", f"{WORKSPACE}/groups/{{did}}/recompute"): "definitions:write",
    ("GET", f"{WORKSPACE}/jobs"): "definitions:read",
    ("GET", f"{WORKSPACE}/jobs/{{jid}}"): "definitions:read",
    ("GET", "/v1/workspace/{ws}/audiences"): "groups:read",
    ("GET", "/v1/audiences"): "groups:read",
    ("DELETE", "/v1/audiences/{aid}"): "groups:write",
    ("POST", "/v2/events"): "events:write",
    ("POST", "/v2/bulkevents"): "events:write",
    ("POST", "/v2/bulkevents/historical"): "events:write",
    ("POST", "/userprofile/v1/resolve/{org}/{account}/{ws}"): "profiles:read",
    ("GET", "/userprofile/v1/{org}/{account}/{ws}/{mpid}"): "profiles:read",
    ("POST", "/userprofile/v1/{org}/{account}/{ws}/{mpid}"): "profiles:read",
}
"""Scope x route, as the API promises it: written down a second time, so that a change is meant."""

ALSO = {
    ("POST", f"{ROOT}/profile-groups/preview"): ("profiles:read",),
    ("GET", f"{ROOT}/profile-groups/{{gid}}/members/{{pid}}/explain"): ("profiles:read",),
}
"""Routes that need more than one scope."""

OWN = {
    ("GET", f"{ROOT}/profile"),
    ("PATCH", f"{ROOT}/profile"),
    ("GET", "/api/v1/profiles/{pid}"),
    ("PATCH", "/api/v1/profiles/{pid}"),
    ("GET", f"{ROOT}/profiles/{{pid}}/profile-groups"),
}
"""What the token of a profile may call, for that profile; `test_admission` tries all of it."""


def test_the_table_of_scopes_is_the_one_promised() -> None:
    assert {(method, path): each.scope for method, path, each in operations()} == TABLE
    assert {(method, path) for method, path, each in operations() if each.own} == OWN
    also = {(method, path): each.also for method, path, each in operations() if each.also}
    assert also == ALSO


def test_every_operation_has_a_summary_and_says_what_it_answers() -> None:
    for method, path, operation in operations():
        assert re.fullmatch(r"[A-Z].{10,100}", operation.summary), (method, path)
        without_body = operation.status == 204 or operation.scope == "events:write"
        assert (operation.reply is None) == without_body, (method, path)


async def test_every_request_printed_in_the_seed_is_answered_as_documented(
    admin: Client,
) -> None:
    group = "7b9a6f0e-2b0c-4b8e-9f7e-0d6a3c1e5f11"
    new = {
        "name": "Group created",
        "is_active": True,
        "description": "A new group has been created",
        "attributes": [{"key": "key1", "value": "val1"}],
    }
    edited = new | {"name": "Group - edited"}
    one = {"profile_ids": ["174cc6dd-c1da-42d2-886e-c48b2bf803a8"]}
    two = {
        "profile_ids": [
            "174cc6dd-c1da-42d2-886e-c48b2bf803a8",
            "d4b24ed2-f242-4a5a-9ae1-d9b7834f5a98",
        ]
    }
    assert (one["profile_ids"], two["profile_ids"]) == ([P1], [P1, P2])

    # Creating a new profile group
    created = (await admin.post(f"{GROUPS}/{group}/", new, 201)).plain
    assert new | {"id": group, "profile_count": 0, "custom_id": None} == {
        name: created[name] for name in [*new, "id", "profile_count", "custom_id"]
    }
    # Listing profile groups in an app
    assert [created] == (await admin.get(f"{GROUPS}/")).plain["results"]
    # Adding members to a profile group, one and several
    added = await admin.post(f"{GROUPS}/{group}/members/", one)
    assert added.body.successfully_added == [P1]
    added = await admin.post(f"{GROUPS}/{group}/members/", two)
    assert (added.body.successfully_added, added.body.already_added) == ([P2], [P1])
    # Listing profile group members
    members = (await admin.get(f"{GROUPS}/{group}/members/")).body
    assert {P1, P2} == {member.id for member in members.results}
    # Listing groups a profile is a member of
    [membership] = (await admin.get(f"{DEMO}/profiles/{P1}/profile-groups/")).body.results
    assert (group, "Group created", 2) == (
        membership.group_id,
        membership.group_name,
        membership.profile_count,
    )
    # Updating a profile group's details
    answer = await admin.call("PUT", f"{GROUPS}/{group}/", edited, status=200)
    assert answer.body.name == "Group - edited"
    # Removing members, by ids and by custom ids
    await admin.delete(f"{GROUPS}/{group}/members/", one)
    await admin.post(f"{GROUPS}/{group}/members/", {"custom_ids": ["mine"]})
    await admin.delete(f"{GROUPS}/{group}/members/", {"custom_ids": ["mine"]})
    left = (await admin.get(f"{GROUPS}/{group}/members/")).body
    assert [member.id for member in left.results] == [P2]
    # "but not both on the same time"
    both = two | {"custom_ids": ["mine"]}
    await admin.post(f"{GROUPS}/{group}/members/", both, 400)
    await admin.delete(f"{GROUPS}/{group}/members/", both, 400)
    # "Changing is_active to false will … cause 404 on consecutive calls"
    await admin.call("PUT", f"{GROUPS}/{group}/", edited | {"is_active": False}, status=200)
    await admin.get(f"{GROUPS}/{group}/", 404)
    # Deleting a profile group, printed without a slash
    other = await admin.group()
    await admin.delete(f"{GROUPS}/{other}")
    await admin.get(f"{GROUPS}/{other}/", 404)


@pytest.mark.parametrize("path", sorted({path for path, _ in ROUTES}))
async def test_a_slash_at_the_end_makes_no_difference_and_nothing_redirects(
    api: Api, path: str
) -> None:
    where = filled(path)
    sent = {"Authorization": f"Bearer {api.admin.token}"}
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        with_slash, without = [
            await api.conductor.simulate_request(method, each, body=b"{", headers=sent)
            for each in (f"{where}/", where)
        ]
        assert with_slash.status == without.status
        assert not 300 <= without.status_code < 400
        if (method, path) not in TABLE:
            assert without.status_code == 405
            [said] = without.json["errors"] if is_identity(path) else [without.json]
            assert "method_not_allowed" == said.get("error_code", said.get("code")).lower()
            allowed = {of for of, where in TABLE if where == path}
            assert allowed <= set(without.headers["allow"].split(", "))


async def test_what_is_not_there_is_404_in_the_shape_of_the_face(admin: Client) -> None:
    for path in ("/", "/api/v1/", "/api/v1/nothing", f"{DEMO}/nothing/", "/%2Fhealthz", "/%ff"):
        answer = await admin.get(path, 404)
        assert answer.plain == {"detail": "Not found.", "error_code": "not_found"}


async def test_a_bug_is_a_500_that_is_logged_and_says_nothing_of_itself(
    api: Api, admin: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the secret of the bug")

    monkeypatch.setattr(api.store.groups, "get_group", broken)

    with caplog.at_level(logging.ERROR):
        answer = await admin.get(f"{GROUPS}/{P1}/", 500)

    request_id = answer.headers["x-request-id"]
    assert answer.plain == {
        "detail": f"The server failed, and has logged why: ask for the request id {request_id}.",
        "error_code": "error",
    }
    assert "the secret of the bug" in caplog.text
    assert request_id in caplog.text


async def test_a_store_that_does_not_answer_is_503_with_retry_after(
    api: Api, admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(*_: object, **__: object) -> None:
        raise Unavailable("the store is gone")

    monkeypatch.setattr(api.store.groups, "get_group", gone)

    answer = await admin.get(f"{GROUPS}/{P1}/", 503)

    assert (answer.body.detail, answer.body.error_code) == ("the store is gone", "unavailable")
    assert answer.headers["retry-after"] == "1"


def test_an_application_object_needs_a_store() -> None:
    with pytest.raises(Unusable, match="redis_url"):
        create_app(Config())


async def test_a_store_that_is_down_at_the_start_is_used_once_it_is_there() -> None:
    server = backings.embedded(port=backings.free_port())
    try:
        store = await Store.open(server.url)
        await store.registry.create_application("demo")
        await store.close()
        server.suspend()
        app = create_app(Config(redis_url=server.url))
        async with falcon.testing.ASGIConductor(app) as conductor:
            for path in ("/readyz", f"{DEMO}/", f"{GROUPS}/"):
                assert (await conductor.simulate_get(path)).status_code == 503
            assert (await conductor.simulate_post("/oauth/token", body="{}")).status_code == 503
            assert (await conductor.simulate_get("/healthz")).status_code == 200
            server.resume()
            deadline = time.monotonic() + 2
            while (await conductor.simulate_get("/readyz")).status_code != 200:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            assert (await conductor.simulate_get(f"{DEMO}/")).status_code == 200
    finally:
        server.stop()


async def test_whatever_keeps_the_store_from_opening_is_logged_and_tried_again(
    valkey: backings.Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A script that failed in the check of the format ended the opening for good: 503 for ever."""
    failures = [ScriptFailed("check_format: oh"), *[RuntimeError("a bug")] * 2, Unusable("no")]
    reached: list[str] = []
    opening = Store.open

    async def broken(url: str) -> Store:
        reached.append(url)
        if failures:
            raise failures.pop(0)
        return await opening(url)

    monkeypatch.setattr(Store, "open", broken)
    monkeypatch.setattr("service.app.RETRY_SECONDS", 0.05)
    app = create_app(Config(redis_url=valkey.url))
    async with falcon.testing.ASGIConductor(app) as conductor:
        deadline = time.monotonic() + 5
        while (await conductor.simulate_get("/readyz")).status_code != 200:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)

    assert len(reached) == 5
    for said in ("check_format: oh", "RuntimeError: a bug", "not opened yet: no"):
        assert caplog.text.count(said) == 1


async def test_a_store_that_goes_is_503_within_a_second_and_back_within_two(
    valkey: backings.Server,
) -> None:
    async with opened(valkey.url) as api:
        group = await api.admin.group()
        valkey.suspend()
        try:
            began = time.monotonic()
            await api.admin.get(f"{GROUPS}/{group}/", 503)
            # A second, and what a busy machine adds.
            assert time.monotonic() - began < 1.25
        finally:
            valkey.resume()
        deadline = time.monotonic() + 2
        while (await api.admin.call("GET", f"{GROUPS}/{group}/")).status != 200:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


async def test_the_store_is_closed_at_the_end(valkey: backings.Server) -> None:
    app = create_app(Config(redis_url=valkey.url))
    async with falcon.testing.ASGIConductor(app) as conductor:
        assert (await conductor.simulate_get("/readyz")).status_code == 200

    assert (await falcon.testing.ASGIConductor(app).simulate_get("/readyz")).status_code == 503


async def test_put_away_through_one_worker_is_404_at_once_through_the_other(
    valkey: backings.Server,
) -> None:
    async with opened(valkey.url) as one, opened(valkey.url) as other:
        group = await one.admin.group(custom_id="c")
        path = f"{GROUPS}/{group}/"
        await one.admin.post(f"{path}members/", {"profile_ids": [P1]})
        pairs = {"pairs": [{"profile_id": P1, "group_id": group}]}
        reads: list[Callable[[], Any]] = [
            lambda: other.admin.call("GET", path),
            lambda: other.admin.call("GET", f"{GROUPS}/c/"),
            lambda: other.admin.call("GET", f"{path}members/"),
            lambda: other.admin.call("GET", f"{path}members/{P1}/"),
            lambda: other.admin.call("POST", f"{path}members/", {"profile_ids": [P2]}),
        ]
        for turn in range(1000):
            read = reads[turn % len(reads)]
            assert (await read()).status == 200
            await one.admin.patch(path, {"is_active": False})
            assert (await read()).status == 404
            check = (await other.admin.post(f"{DEMO}/memberships/check/", pairs)).body
            groups = (await other.admin.get(f"{DEMO}/profiles/{P1}/profile-groups/")).body
            listed = (await other.admin.get(f"{GROUPS}/")).body
            assert (check.results, groups.count, listed.count) == ([None], 0, 0)
            await one.admin.patch(f"{path}?include_inactive=true", {"is_active": True})


async def test_a_delete_through_one_worker_is_a_404_at_once_through_the_other(
    valkey: backings.Server,
) -> None:
    async with opened(valkey.url) as one, opened(valkey.url) as other:
        for _ in range(100):
            group = await one.admin.group(custom_id="c")
            await other.admin.post(f"{GROUPS}/{group}/members/", {"profile_ids": [P1]})
            await one.admin.delete(f"{GROUPS}/{group}/")
            for path in (f"{GROUPS}/{group}/", f"{GROUPS}/c/", f"{GROUPS}/{group}/members/"):
                await other.admin.get(path, 404)
            await other.admin.post(f"{GROUPS}/{group}/members/", {"profile_ids": [P2]}, 404)
            page = (await other.admin.get(f"{DEMO}/profiles/{P1}/profile-groups/")).body
            assert page.count == 0


async def test_a_name_changed_through_one_worker_shows_in_the_other_within_a_second(
    valkey: backings.Server,
) -> None:
    async with opened(valkey.url) as one, opened(valkey.url) as other:
        group = await one.admin.group("old")
        await one.admin.post(f"{GROUPS}/{group}/members/", {"profile_ids": [P1]})
        path = f"{DEMO}/profiles/{P1}/profile-groups/"
        await other.admin.get(path)

        await one.admin.patch(f"{GROUPS}/{group}/", {"name": "new"})

        deadline = time.monotonic() + 1.5
        while (await other.admin.get(path)).body.results[0].group_name != "new":
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)


async def test_requests_that_come_together_are_answered_each_with_its_own(api: Api) -> None:
    groups = [await api.admin.group(f"{number}") for number in range(20)]

    async def read(number: int) -> tuple[int, str]:
        answer = await api.admin.get(f"{GROUPS}/{groups[number % 20]}/")
        return number % 20, answer.body.name

    for number, name in await asyncio.gather(*(read(number) for number in range(400))):
        assert f"{number}" == name


async def test_a_client_that_goes_away_in_the_middle_disturbs_nobody(api: Api) -> None:
    group = await api.admin.group()
    for pause in range(20):
        task = asyncio.create_task(api.admin.call("GET", f"{GROUPS}/{group}/"))
        for _ in range(pause):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert group == (await api.admin.get(f"{GROUPS}/{group}/")).body.id


async def test_a_token_made_elsewhere_works_in_every_worker(valkey: backings.Server) -> None:
    async with opened(valkey.url) as one, opened(valkey.url) as other:
        token = await auth.mint(
            one.store.registry, applications=["demo"], scopes=["groups:read"], subject="x"
        )
        for api in (one, other):
            await api.admin.using(token).get(f"{GROUPS}/")
