"""Browsers: a page of any origin may call the API and read its answers, and nothing else."""

from __future__ import annotations

import falcon
import pytest

from service.app import ROUTES, operations
from service.cors import PREFIX
from tests.client import DEMO, GROUPS, Api, Client, filled

ORIGIN = {"Origin": "https://shop.example"}
SHARED = {
    "access-control-allow-origin": "*",
    "access-control-expose-headers": "X-Request-Id, Retry-After",
}


def cors(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("access-control-")}


def path_of(template: str) -> str:
    return filled(template, gid="g", file="x")


API_PATHS = [path for path, _ in ROUTES if path.startswith(PREFIX)]
OTHER_PATHS = [path for path, _ in ROUTES if not path.startswith(PREFIX)]


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("template", API_PATHS)
async def test_a_preflight_of_the_api_says_what_pages_may_send_and_needs_no_token(
    api: Api, template: str, slash: str
) -> None:
    methods = [method for method, path, _ in operations() if path == template]
    asked = ORIGIN | {
        "Access-Control-Request-Method": methods[0],
        "Access-Control-Request-Headers": "authorization,content-type",
    }

    answer = await api.admin.using(None).call(
        "OPTIONS", path_of(template) + slash, status=204, headers=asked
    )

    found = cors(answer.headers)
    allowed = found.pop("access-control-allow-methods")
    assert sorted(methods) == sorted(allowed.split(", "))
    assert allowed == answer.headers["allow"]
    assert found == SHARED | {
        "access-control-allow-headers": "authorization, content-type, x-request-id",
        "access-control-max-age": "600",
    }


async def test_a_preflight_asks_for_no_application_that_exists_and_no_store(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(*_: object, **__: object) -> None:
        raise AssertionError("the store was asked")

    monkeypatch.setattr(api.store.connection, "call", gone)
    monkeypatch.setattr(api.store.connection, "command", gone)

    for path in ("/api/v1/applications/nobody/profile-groups/", f"{GROUPS}/%2F%FF/"):
        await api.admin.using(None).call("OPTIONS", path, status=204)


async def test_an_unknown_path_stays_404_and_a_page_can_read_that(admin: Client) -> None:
    for method in ("OPTIONS", "GET", "POST"):
        answer = await admin.call(method, "/api/v1/nothing/", status=404, headers=ORIGIN)
        assert cors(answer.headers) == SHARED


async def test_answers_of_the_api_can_be_read_by_pages_of_any_origin(admin: Client) -> None:
    for headers in (ORIGIN, {"Origin": "null"}, {}):
        answer = await admin.get(f"{GROUPS}/", headers=headers)
        assert cors(answer.headers) == SHARED
    assert cors((await admin.get(f"{DEMO}/")).headers) == SHARED
    group = await admin.group()
    assert cors((await admin.delete(f"{GROUPS}/{group}/")).headers) == SHARED


async def test_errors_of_the_api_can_be_read_too(
    api: Api, admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [
        await admin.using(None).get(f"{GROUPS}/", 401),
        await admin.get("/api/v1/applications/other/profile-groups/", 403),
        await admin.get(f"{GROUPS}/nothing/", 404),
        await admin.call("PATCH", f"{GROUPS}/", status=405),
        await admin.post(f"{GROUPS}/", b"{", 400),
        await admin.post(f"{GROUPS}/", b"x" * (9 * 1024 * 1024), 413),
        await admin.post(f"{GROUPS}/", b"x", 415, headers={"Content-Encoding": "gzip"}),
        await admin.get(f"{GROUPS}/%ff/", 400),
    ]
    await api.store.registry.update_application("demo", requests_per_second=1)
    limited = [await admin.call("GET", f"{GROUPS}/") for _ in range(5)]
    assert limited[-1].status == 429

    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    await api.store.registry.update_application("demo", requests_per_second=None)
    monkeypatch.setattr(api.store.groups, "list_groups", broken)
    surprise = await admin.get(f"{GROUPS}/", 500)
    monkeypatch.undo()

    for answer in [*errors, limited[-1], surprise]:
        assert cors(answer.headers) == SHARED, answer.status


@pytest.mark.parametrize("template", OTHER_PATHS)
async def test_nothing_else_is_shared_with_pages_above_all_not_the_token_endpoint(
    api: Api, template: str
) -> None:
    path = path_of(template)
    for method in ("OPTIONS", "GET", "POST"):
        answer = await api.conductor.simulate_request(
            method, path, headers=ORIGIN | {"Access-Control-Request-Method": "POST"}
        )
        assert cors(dict(answer.headers)) == {}


def test_no_resource_answers_options_by_itself() -> None:
    """It would take the place of the preflight."""
    for _, resource in ROUTES:
        assert not hasattr(resource, "on_options")
    assert "OPTIONS" in falcon.HTTP_METHODS
