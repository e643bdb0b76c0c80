"""The near-cache: what it drops and when, and that answers never depend on it."""

from __future__ import annotations

import asyncio
import time

import pytest

from service import ids, nearcache
from service.errors import NotFound
from service.groups import Group, GroupChanges, NewGroup
from service.nearcache import Directory, NearCache
from service.store import Store
from tests import backings

on_one_server = pytest.mark.parametrize(("backing", "partitions"), [("embedded", 1)], indirect=True)


def group(number):
    return Group(
        id=ids.text(bytes([number]) * 16),
        name="g",
        is_active=True,
        description=None,
        custom_id=None,
        created_at_us=1,
        attributes=(),
        membership_type="static",
        number=number,
        version=1,
    )


@pytest.fixture
def directory():
    """One that has read version 5 and knows two groups."""
    known = Directory(b"{1}")
    known.polled(5)
    for number in (1, 2):
        known.keep_group(group(number))
        known.keep_number(bytes([number]) * 16, number)
    return known


def known(directory):
    assert set(directory.groups) == set(directory.numbers.values()) == set(directory.ids)
    return set(directory.groups)


def test_the_next_change_drops_its_group(directory):
    directory.heard(2, 6)
    assert ({1}, 6) == (known(directory), directory.version)


def test_a_change_after_one_that_was_missed_drops_everything(directory):
    directory.heard(2, 7)
    assert (set(), None) == (known(directory), directory.version)


def test_a_change_that_was_read_before_it_was_heard_drops_its_group(directory):
    directory.heard(2, 5)
    assert ({1}, 5) == (known(directory), directory.version)


def test_a_change_heard_before_the_first_reading_drops_everything(directory):
    directory.version = None
    directory.heard(2, 6)
    assert (set(), None) == (known(directory), directory.version)


def test_the_same_version_read_again_drops_nothing(directory):
    directory.polled(5)
    assert {1, 2} == known(directory)


@pytest.mark.parametrize("version", [4, 6, 0])
def test_a_version_that_was_not_heard_of_drops_everything(directory, version):
    directory.polled(version)
    assert (set(), version) == (known(directory), version)


def test_the_first_reading_of_a_version_drops_what_was_read_before_it():
    """A group was read, changed unheard, and the version read after it: it stayed for good."""
    directory = Directory(b"{1}")
    directory.keep_group(group(1))
    directory.polled(6)
    assert {} == directory.groups


@pytest.mark.parametrize(
    "happened",
    [
        lambda directory: directory.heard(1, 6),
        lambda directory: directory.heard(1, 5),
        lambda directory: directory.heard(2, 9),
        lambda directory: directory.polled(6),
        lambda directory: directory.forget_all(),
    ],
    ids=["its change", "its late change", "a missed change", "a new version", "a new link"],
)
def test_what_was_read_while_it_changed_is_not_kept(directory, happened):
    with directory.filling() as fill:
        happened(directory)
        assert not fill.fits(1)


def test_what_was_read_while_another_changed_is_kept(directory):
    with directory.filling() as fill:
        directory.heard(2, 6)
        assert fill.fits(1)


def test_a_reading_that_is_over_is_watched_no_longer(directory):
    with directory.filling():
        pass
    assert set() == directory.fills


def test_it_is_bounded(directory, monkeypatch):
    monkeypatch.setattr(nearcache, "GROUPS", 2)
    monkeypatch.setattr(nearcache, "NUMBERS", 2)
    directory.keep_group(group(3))
    directory.keep_number(b"3" * 16, 3)
    assert ([2, 3], [2, 3], [2, 3]) == (
        list(directory.groups),
        list(directory.numbers.values()),
        list(directory.ids),
    )


async def test_so_is_the_number_of_directories(store, monkeypatch):
    monkeypatch.setattr(nearcache, "DIRECTORIES", 3)
    for n in range(100, 110):
        store.cache.directory(b"{%d}" % n)
    assert [b"{107}", b"{108}", b"{109}"] == list(store.cache._directories)


async def warm(store, env, profile):
    """The names of a profile's groups, after which the process remembers them."""
    page = await store.lookups.list_profile_groups(env, profile, None, 100)
    return [row.group.name for row in page.rows]


async def until(condition, seconds):
    """Whether something becomes true within a time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if await condition():
            return True
        await asyncio.sleep(0.02)
    return False


async def prepared(store, env):
    group = await store.groups.create_group(env, NewGroup(name="old"))
    profile = ids.new()
    await store.members.add_members(env, group.number, profile)
    return group, profile


async def read_once(store, env):
    """Wait until the version of a directory has been read."""
    store.cache.directory(env.directory)

    async def has_version():
        return store.cache.directory(env.directory).version is not None

    assert await until(has_version, 3)


async def test_another_process_shows_a_new_name_soon(store, second, env):
    group, profile = await prepared(store, env)
    await read_once(second, env)
    assert ["old"] == await warm(second, env, profile)
    await store.groups.update_group(env, group.id, GroupChanges(name="new"))

    async def renamed():
        return ["new"] == await warm(second, env, profile)

    assert await until(renamed, 0.5)


@pytest.mark.parametrize(
    ("backing", "partitions"), [("embedded", 1), ("cluster", 8)], indirect=True
)
@pytest.mark.parametrize("read_before", [False, True])
async def test_so_it_does_when_no_message_reaches_it(store, backing, env, monkeypatch, read_before):
    group, profile = await prepared(store, env)
    monkeypatch.setattr(NearCache, "_heard", lambda *_: None)
    deaf = await Store.open(backing.url)
    try:
        if read_before:
            await read_once(deaf, env)
        assert ["old"] == await warm(deaf, env, profile)
        await store.groups.update_group(env, group.id, GroupChanges(name="new"))

        async def renamed():
            return ["new"] == await warm(deaf, env, profile)

        assert await until(renamed, 1.5)
    finally:
        await deaf.close()


@on_one_server
async def test_what_is_read_while_it_changes_is_not_remembered(store, second, env, monkeypatch):
    group, profile = await prepared(store, env)
    await read_once(second, env)
    call = second.connection.call

    async def late(script, keys, args, *, bulk=False):
        reply = await call(script, keys, args, bulk=bulk)
        if script.name == "read_groups":
            await store.groups.update_group(env, group.id, GroupChanges(name="new"))
            await asyncio.sleep(0.1)
        return reply

    with monkeypatch.context() as patched:
        patched.setattr(second.connection, "call", late)
        assert ["old"] == await warm(second, env, profile)
    assert ["new"] == await warm(second, env, profile)


@on_one_server
async def test_a_lost_subscription_drops_everything(store, backing, env, monkeypatch):
    group, _ = await prepared(store, env)
    await read_once(store, env)
    await store.groups.get_group(env, group.id)
    directory = store.cache.directory(env.directory)
    assert directory.groups
    dropped = []
    forget_all = Directory.forget_all

    def drop(self):
        dropped.append(self)
        forget_all(self)

    monkeypatch.setattr(Directory, "forget_all", drop)
    backing.ask("CLIENT", "KILL", "TYPE", "pubsub")

    async def was_dropped():
        return directory in dropped

    assert await until(was_dropped, 1)


async def test_a_version_that_cannot_be_read_drops_everything():
    server = backings.embedded()
    try:
        store = await Store.open(server.url)
        env = (await store.registry.create_application("test")).production
        group = await store.groups.create_group(env, NewGroup(name="g"))
        await read_once(store, env)
        await store.groups.get_group(env, group.id)
        directory = store.cache.directory(env.directory)
        server.kill()

        async def is_empty():
            return (set(), None) == (known(directory), directory.version)

        assert await until(is_empty, 3)
        await store.close()
    finally:
        server.stop()


@on_one_server
async def test_the_versions_are_read_on_whatever_reading_them_raised(
    store, env, monkeypatch, caplog
):
    """A surprise in one round ended the task: names in lists were never again made fresh."""
    _, profile = await prepared(store, env)
    await read_once(store, env)
    assert ["old"] == await warm(store, env, profile)
    monkeypatch.setattr(nearcache, "POLL_SECONDS", 0.05)
    directory = store.cache.directory(env.directory)
    for surprise in (RuntimeError("a bug"), asyncio.CancelledError()):
        caplog.clear()

        async def broken(*_, surprise=surprise):
            raise surprise

        async def was_logged():
            return "versions of 1 directories not read" in caplog.text

        with monkeypatch.context() as patched:
            patched.setattr(store.connection, "command", broken)
            assert await until(was_logged, 2)
            assert (set(), None) == (known(directory), directory.version)
        await read_once(store, env)


@on_one_server
async def test_a_user_who_may_not_use_the_channel_changes_groups_all_the_same(
    store, backing, env, caplog
):
    """PUBLISH was refused after the writes: a 500 for each change, which was made nonetheless."""
    backing.ask("ACL SETUSER", "ann", "on", ">pw", "~*", "+@all")
    ann = await Store.open(backing.url.replace("unix://", "unix://ann:pw@"))
    try:
        group = await ann.groups.create_group(env, NewGroup(name="old"))
        profile = ids.new()
        await ann.members.add_members(env, group.number, profile)
        for one, other, name in ((store, ann, "new"), (ann, store, "newer")):
            await warm(other, env, profile)
            await one.groups.update_group(env, group.id, GroupChanges(name=name))

            async def renamed(other=other, name=name):
                return [name] == await warm(other, env, profile)

            assert await until(renamed, 1.5)
        await ann.groups.delete_group(env, group.id)
        assert "does not let our user hear the channel belong:changes" in caplog.text
    finally:
        await ann.close()
        backing.ask("ACL DELUSER", "ann")


@on_one_server
async def test_a_server_that_lost_writes_does_not_leave_us_with_what_it_lost(store, backing, env):
    """A failover takes the directory back: its version goes backwards, and then rises again."""
    group, profile = await prepared(store, env)
    await store.groups.update_group(env, group.id, GroupChanges(name="lost"))
    await read_once(store, env)
    assert ["lost"] == await warm(store, env, profile)
    key = env.directory + b":group:%d" % group.number
    document = backing.ask("HGET", key, "document")
    backing.ask("HSET", key, "document", document.replace(b'"lost"', b'"kept"'))
    backing.ask("DECR", env.directory + b":version")

    async def is_kept():
        return ["kept"] == await warm(store, env, profile)

    assert await until(is_kept, 2)
    backing.ask("HSET", key, "document", document)


async def test_a_group_put_away_by_one_is_put_away_for_all_at_once(store, second, env):
    """Whatever a cache holds: member scripts ask the state in their own slot."""
    await put_away_and_back(store, second, env, rounds=20)


@on_one_server
async def test_so_it_is_every_time(store, second, env):
    await put_away_and_back(store, second, env, rounds=1000)


async def put_away_and_back(store, second, env, rounds):
    group, profile = await prepared(store, env)
    away, back = GroupChanges(is_active=False), GroupChanges(is_active=True)
    stores = (store, second)
    for n in range(rounds):
        one, other = stores[n % 2], stores[1 - n % 2]
        number = await other.groups.number_of(env, group.id)
        assert ["old"] == await warm(other, env, profile)
        await one.groups.update_group(env, group.id, away)
        assert b"n" == await other.members.check_members(env, [number], profile)
        assert [] == await warm(other, env, profile)
        with pytest.raises(NotFound):
            await other.members.list_members(env, number, None, 10)
        with pytest.raises(NotFound):
            await other.groups.get_group(env, group.id)
        await other.groups.update_group(env, group.id, back, include_inactive=True)
        assert b"1" == await one.members.check_members(env, [number], profile)


async def test_a_deleted_group_is_gone_for_all_at_once(store, second, env):
    group, profile = await prepared(store, env)
    number = await second.groups.number_of(env, group.id)
    assert ["old"] == await warm(second, env, profile)
    await store.groups.delete_group(env, group.id)
    assert b"n" == await second.members.check_members(env, [number], profile)
    assert [] == await warm(second, env, profile)
    with pytest.raises(NotFound):
        await second.members.add_members(env, number, ids.new())
