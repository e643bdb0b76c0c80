"""Fixtures: the store on every backing, and the check of its data after every test.

A test that takes `store` runs on fakeredis, on the embedded server, on Debian's Redis 7.0 and on a
three-node cluster, each with one partition and with eight; when it ends, `verify` has to find
nothing wrong. Servers are started once for all tests and flushed for each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from service.store import Store
from service.verify import verify
from tests import backings
from tests.client import admin, api, valkey  # noqa: F401 - fixtures of the HTTP tests
from tests.npm import node_modules  # noqa: F401 - fixture of the tests that run node
from tests.serving import runtime, serve  # noqa: F401 - fixtures of real processes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from service.environment import Application, Environment

BACKINGS = ("fake", "embedded", "redis7", "cluster")
PARTITIONS = (1, 8)


@pytest.fixture(scope="session")
def servers() -> Iterator[dict[str, backings.Server | backings.Cluster | backings.Fake]]:
    """Started backings by name; `backing` starts the one it needs."""
    started: dict[str, backings.Server | backings.Cluster | backings.Fake] = {}
    yield started
    for each in started.values():
        each.stop()


def start(servers, name):
    """Give a flushed backing, started at its first use."""
    if name not in servers:
        started = getattr(backings, name)()
        if started is None:
            pytest.skip("Debian's redis-server is not installed")
        servers[name] = started
    servers[name].flush()
    return servers[name]


@pytest.fixture(params=BACKINGS)
def backing(request, servers):
    """One of the four backings, empty."""
    return start(servers, request.param)


@pytest.fixture(params=PARTITIONS, ids=["one-partition", "eight-partitions"])
def partitions(request) -> int:
    """How many partitions the application has."""
    return request.param


@pytest.fixture
async def store(backing) -> AsyncIterator[Store]:
    """An open store, whose data has to be right when the test ends."""
    opened = await Store.open(backing.url)
    yield opened
    report = await verify(opened)
    await opened.close()
    assert report.problems == []


@pytest.fixture
async def second(backing) -> AsyncIterator[Store]:
    """Open the same store as another process would."""
    opened = await Store.open(backing.url)
    yield opened
    await opened.close()


@pytest.fixture
async def application(store, partitions) -> Application:
    """An application in the store."""
    return await store.registry.create_application("test", partitions=partitions)


@pytest.fixture
async def env(application) -> Environment:
    """The production environment of the application."""
    return application.production
