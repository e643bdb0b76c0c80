"""Health: whether the process lives, and whether it can answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import falcon.testing

from service.app import create_app
from service.config import Config
from service.errors import Unavailable

if TYPE_CHECKING:
    import pytest

    from tests.client import Api, Client


async def test_a_process_with_a_store_is_ready(admin: Client) -> None:
    for path in ("/healthz", "/healthz/", "/readyz", "/readyz/"):
        assert (await admin.using(None).get(path)).content == b'{"status":"ok"}'


async def test_health_does_not_ask_the_store(
    api: Api, admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone() -> None:
        raise Unavailable("the store is gone")

    monkeypatch.setattr(api.store, "ping", gone)

    await admin.get("/healthz")
    answer = await admin.get("/readyz", 503)

    assert answer.plain == {"status": "unavailable", "reason": "the store is gone"}
    assert answer.headers["retry-after"] == "1"


async def test_a_process_whose_store_was_never_there_lives_and_is_not_ready() -> None:
    app = create_app(Config(redis_url="redis://127.0.0.1:1"))
    async with falcon.testing.ASGIConductor(app) as conductor:
        alive = await conductor.simulate_get("/healthz")
        ready = await conductor.simulate_get("/readyz")

    assert alive.status_code == 200
    assert (ready.status_code, ready.json["status"]) == (503, "unavailable")
    assert ready.json["reason"]
