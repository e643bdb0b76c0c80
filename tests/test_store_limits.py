"""Limits in the store: exactly as many as allowed, over all processes, whatever the clocks say.

What is kept expires by the store's own clock, which no test can hold: so requests come back slowly
here, one in ten seconds.
"""

from __future__ import annotations

import asyncio
import time

import pytest

from service import keys, store_limits
from service.errors import BelongError, TooManyRequests, Unavailable
from service.store import Store
from service.verify import verify
from tests import backings


class Clock:
    """A clock that goes where a test puts it."""

    def __init__(self):
        self.now_us = time.time_ns() // 1000

    def time_ns(self):
        return self.now_us * 1000

    def monotonic_ns(self):
        return self.now_us * 1000

    def forward(self, seconds):
        self.now_us += round(seconds * 1_000_000)


@pytest.fixture
def clock(monkeypatch):
    stopped = Clock()
    monkeypatch.setattr(store_limits, "time", stopped)
    return stopped


async def passed(times, store, env, caller="caller", per_second=0.1, burst=5):
    """How many of so many calls at once are let through."""
    calls = (store.limits.take(env, caller, per_second, burst) for _ in range(times))
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [] == [each for each in results if not isinstance(each, TooManyRequests | int)]
    return len([each for each in results if isinstance(each, int)])


async def test_of_many_calls_at_once_exactly_the_burst_passes(store, second, env, clock):
    one, other = await asyncio.gather(passed(100, store, env), passed(100, second, env))
    assert 5 == one + other


async def test_requests_come_back_one_by_one_and_no_more_than_the_burst(store, env, clock):
    assert 5 == await passed(20, store, env)
    clock.forward(9.999_999)
    assert 0 == await passed(20, store, env)
    clock.forward(0.000_001)
    assert 1 == await passed(20, store, env)
    clock.forward(35)
    assert 3 == await passed(20, store, env)
    clock.forward(3600)
    assert 5 == await passed(20, store, env)


async def test_the_average_holds_over_time(store, env, clock):
    total = 0
    for _ in range(100):
        total += await passed(2, store, env, per_second=0.07, burst=2)
        clock.forward(3)
    # What was there, and 297 seconds at 0.07 a second.
    assert 2 + 20 == total


async def test_callers_and_environments_do_not_share_an_allowance(store, application, clock):
    env, other = application.production, application.environments["development"]
    assert 5 == await passed(9, store, env, "anonymous:192.0.2.1")
    assert 5 == await passed(9, store, env, "anonymous:2001:db8::/64")
    assert 5 == await passed(9, store, env, "")
    assert 5 == await passed(9, store, env, "sub\x00ject: {7}\n\N{SNOWMAN}")
    assert 5 == await passed(9, store, other, "anonymous:192.0.2.1")


@pytest.mark.parametrize(
    ("per_second", "burst", "seconds"), [(5.0, 100, 1), (0.5, 5, 2), (0.3, 5, 4)]
)
async def test_who_is_refused_is_told_whole_seconds_after_which_it_succeeds(
    store, env, clock, per_second, burst, seconds
):
    assert burst == await passed(burst, store, env, per_second=per_second, burst=burst)
    with pytest.raises(TooManyRequests, match=f"{per_second:g} a second") as refusal:
        await store.limits.take(env, "caller", per_second, burst)
    assert seconds == refusal.value.retry_after_seconds
    assert isinstance(refusal.value.retry_after_seconds, int)
    clock.forward(seconds)
    await store.limits.take(env, "caller", per_second, burst)


async def test_who_passes_is_told_how_much_is_used_in_percent_rounded_up(store, env, clock):
    assert [34, 67, 100] == [await store.limits.take(env, "caller", 0.1, 3) for _ in range(3)]
    clock.forward(15)
    assert 84 == await store.limits.take(env, "caller", 0.1, 3)
    clock.forward(3600)
    assert 34 == await store.limits.take(env, "caller", 0.1, 3)
    assert 1 == await store.limits.take(env, "another", 1000.0, 1000)
    assert 100 == await store.limits.take(env, "third", 0.1, 1)


async def test_refusals_do_not_prolong_the_wait(store, env, clock):
    await passed(5, store, env)
    for _ in range(10):
        assert 0 == await passed(10, store, env)
    clock.forward(10)
    assert 1 == await passed(1, store, env)


async def test_a_clock_that_went_back_a_little_never_lets_more_through(store, env, clock):
    assert 5 == await passed(5, store, env)
    clock.forward(-4.9)
    assert 0 == await passed(5, store, env)
    clock.forward(4.9 + 9.9)
    assert 0 == await passed(5, store, env)
    clock.forward(0.1)
    assert 1 == await passed(5, store, env)


async def test_a_clock_that_went_back_a_day_does_not_shut_anybody_out(store, env, clock):
    assert 5 == await passed(5, store, env)
    clock.forward(-86_400)
    assert 0 == await passed(5, store, env)
    clock.forward(10)
    assert 1 == await passed(5, store, env)


async def test_a_lower_limit_holds_at_once(store, env, clock):
    await passed(100, store, env, per_second=0.2, burst=100)
    assert 0 == await passed(5, store, env, per_second=0.1, burst=5)
    clock.forward(10)
    assert 1 == await passed(5, store, env, per_second=0.1, burst=5)


async def test_an_allowance_that_is_whole_again_leaves_nothing_behind(store, env):
    key = keys.allowance(env.directory, "caller")
    await store.limits.take(env, "caller", 4.0, 2)
    assert 0 < await store.connection.command(key, "PTTL", key) <= 250
    await asyncio.sleep(0.3)
    assert 0 == await store.connection.command(key, "EXISTS", key)


async def test_what_is_no_time_counts_as_whole(store, env):
    key = keys.allowance(env.directory, "caller")
    await store.connection.command(key, "SET", key, "soon")
    assert 5 == await passed(9, store, env)


async def test_an_allowance_does_not_keep_its_application_from_being_deleted(store, application):
    env = application.production
    await store.limits.take(env, "caller", 0.01, 2)
    assert [] == (await verify(store)).problems
    await store.registry.delete_application("test")
    assert [] == (await verify(store)).problems
    key = keys.allowance(env.directory, "caller")
    await store.connection.command(key, "PERSIST", key)
    [problem] = (await verify(store)).problems
    assert "belongs to no environment, one of 1 below" in problem
    await store.connection.command(key, "DEL", key)


async def test_an_allowance_of_another_type_is_found(store, env):
    key = keys.allowance(env.directory, "caller")
    await store.connection.command(key, "HSET", key, "a", "b")
    [problem] = (await verify(store)).problems
    assert problem.endswith("is a hash")
    await store.connection.command(key, "DEL", key)


async def test_a_full_store_counts_no_more_but_each_process_does(clock):
    # A limit must not make reads of a full store fail, nor let everything through.
    server = backings.embedded()
    store = await Store.open(server.url)
    try:
        env = (await store.registry.create_application("acme")).production
        assert 5 == await passed(9, store, env)
        server.ask("CONFIG", "SET", "maxmemory", "1")
        assert 5 == await passed(9, store, env)
        clock.forward(10)
        assert 1 == await passed(9, store, env)
        assert [50, 100] == [await store.limits.take(env, "third", 0.1, 2) for _ in range(2)]
        assert 5 == await passed(9, store, env, "another")
        assert 0 == server.ask("EXISTS", keys.allowance(env.directory, "another"))
        server.ask("CONFIG", "SET", "maxmemory", "0")
        assert 5 == await passed(9, store, env, "another")
    finally:
        await store.close()
        server.stop()


async def test_a_process_counts_a_bounded_number_of_callers_by_itself(clock, monkeypatch):
    monkeypatch.setattr(store_limits, "ALONE", 3)
    server = backings.embedded()
    store = await Store.open(server.url)
    try:
        env = (await store.registry.create_application("acme")).production
        server.ask("CONFIG", "SET", "maxmemory", "1")
        for number in range(10):
            assert 1 == await passed(3, store, env, f"caller {number}", burst=1)
        assert [0, 0, 0] == [
            await passed(1, store, env, f"caller {number}", burst=1) for number in (7, 8, 9)
        ]
        assert 3 == len(store.limits._alone)
    finally:
        await store.close()
        server.stop()


async def test_a_store_that_is_gone_is_unavailable():
    server = backings.embedded()
    store = await Store.open(server.url)
    try:
        env = (await store.registry.create_application("acme")).production
        server.kill()
        with pytest.raises(Unavailable) as failure:
            await store.limits.take(env, "caller", 1.0, 1)
        assert isinstance(failure.value, BelongError)
    finally:
        await store.close()
        server.stop()
