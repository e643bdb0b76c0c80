"""`belong recompute`: what it prints while a job is on its way, and how it ends."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from service import cli, cli_recompute, ids
from service.errors import ScriptFailed
from service.store import Store
from service.store_definitions import NewDefinition
from service.worker import work

if TYPE_CHECKING:
    from collections.abc import Callable

HOUSEHOLD = NewDefinition(id="household", source_user_attribute="$address")


@pytest.fixture
def url(valkey, monkeypatch) -> str:
    """The URL of a store with the application `shop`, which has 30 profiles and a definition."""
    monkeypatch.setenv("BELONG_REDIS_URL", valkey.url)

    async def prepare(store: Store) -> None:
        shop = await store.registry.create_application("shop")
        names = [ids.text(ids.new()) for _ in range(30)]
        env = shop.production
        await store.profiles.resolve_identities(env, "customer_id", names, create=True)
        await store.definitions.create_definition(shop, HOUSEHOLD, "tests")
        await work(store, grace_us=0)

    with_store(valkey.url, prepare)
    return str(valkey.url)


def with_store(url: str, use: Callable[[Store], Any]) -> Any:
    async def run() -> Any:
        store = await Store.open(url)
        try:
            return await use(store)
        finally:
            await store.close()

    return asyncio.run(run())


def recompute(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(
        cli.main, ["recompute", "--application", *arguments], catch_exceptions=False
    )
    assert (code, "") == (result.exit_code, "" if result.exit_code == code else result.output)
    return result


@pytest.fixture
def working(url):
    """A worker, which may be told to go on; it works until the test ends."""
    begin, end = threading.Event(), threading.Event()

    async def again(store: Store) -> None:
        while not end.is_set():
            if begin.is_set():
                await work(store, grace_us=0)
            await asyncio.sleep(0.02)

    thread = threading.Thread(target=with_store, args=(url, again))
    thread.start()
    yield begin
    end.set()
    thread.join(20)
    assert not thread.is_alive()


def test_it_waits_until_the_job_is_done(working):
    working.set()
    found = json.loads(recompute("shop", "--json").stdout)
    assert ("done", 30, 30) == (found["state"], found["done"], found["total"])
    assert {"id", "state", "done", "total"} == set(found)


def test_without_json_it_is_text_for_people(working):
    working.set()
    lines = recompute("shop", "--definition", "household").stdout.splitlines()
    assert ["state  done", "done   30", "total  30"] == lines[1:]


def test_without_waiting_it_prints_the_job_that_waits(url):
    one, two = (json.loads(recompute("shop", "--no-wait", "--json").stdout) for _ in range(2))
    assert (one, "queued") == (two, one["state"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nobody",), "no application nobody"),
        (("shop", "--definition", "other"), "The group definition 'other' was not found."),
    ],
)
def test_what_does_not_exist_is_said(url, arguments, sentence):
    assert f"belong: {sentence}\n" == recompute(*arguments, code=1).stderr


def test_where_no_worker_runs_it_says_so_and_still_waits(working, monkeypatch):
    monkeypatch.setattr(cli_recompute, "QUIET_SECONDS", 0.2)
    monkeypatch.setattr(cli_recompute, "POLL_SECONDS", 0.05)
    threading.Timer(1, working.set).start()
    result = recompute("shop", "--json")
    assert "done" == json.loads(result.stdout)["state"]
    assert 1 == result.stderr.count("does a worker run")


def test_a_job_that_fails_is_exit_1(working, monkeypatch):
    async def fail(*args: object, **kwargs: object) -> None:
        raise ScriptFailed("broken")

    monkeypatch.setattr("service.store_derivation.DerivationStore.derive_profiles", fail)
    working.set()
    found = json.loads(recompute("shop", "--json", code=1).stdout)
    assert ("failed", True) == (found["state"], "broken" in found["error"])
