"""The registry: applications, credentials, signing keys, and the copy that each process holds."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest

from service import auth, keys, registry
from service.errors import Conflict, Invalid, NotFound, Unavailable, Unusable
from service.groups import NewGroup
from service.ids import new
from service.store import Store
from service.verify import verify
from service.worker import work
from tests import backings


async def test_an_application_is_found_by_its_client_id(store):
    made = await store.registry.create_application("one", name="One", partitions=8)
    found = await store.registry.application("one")
    assert (made.number, "One", 8) == (found.number, found.name, len(found.production.partitions))


async def test_an_unknown_application_is_none(store):
    assert await store.registry.application("nobody") is None


async def test_applications_share_no_numbers_and_no_tags(store):
    made = [await store.registry.create_application(f"a{n}", partitions=8) for n in range(4)]
    environments = [each for app in made for each in app.environments.values()]
    tags = [tag for each in environments for tag in (each.directory, *each.partitions)]
    assert (8, 8 * 9) == (len({each.number for each in environments}), len(set(tags)))
    assert 4 == len({each.workspace_id for each in made})


@pytest.mark.parametrize("client_id", ["", "a b", "ä", "x" * 65, "a/b", "{7}"])
async def test_a_client_id_is_plain(store, client_id):
    with pytest.raises(Invalid):
        await store.registry.create_application(client_id)


@pytest.mark.parametrize("partitions", [0, 65])
async def test_partitions_have_bounds(store, partitions):
    with pytest.raises(Invalid):
        await store.registry.create_application("one", partitions=partitions)


async def test_a_client_id_is_taken_once(store, second):
    done = await asyncio.gather(
        *(each.registry.create_application("one") for each in (store, second) * 3),
        return_exceptions=True,
    )
    assert 5 == sum(isinstance(each, Conflict) for each in done)


async def test_a_workspace_is_taken_once(store):
    await store.registry.create_application("one", workspace_id=7)
    with pytest.raises(Conflict):
        await store.registry.create_application("two", workspace_id=7)
    assert await store.registry.application("two") is None


async def test_a_workspace_that_was_asked_for_is_passed_over_by_the_counter(store):
    await store.registry.create_application("one", workspace_id=1)
    made = await store.registry.create_application("two")
    assert 2 == made.workspace_id


async def test_settings_change_one_by_one(store, second):
    await store.registry.create_application("one")
    await asyncio.gather(
        store.registry.update_application("one", name="N"),
        second.registry.update_application("one", profiles="registered"),
        second.registry.update_application("one", groups_per_profile=7),
    )
    found = (await store.registry.list_applications())[0]
    assert ("N", "registered", 7) == (found.name, found.profiles, found.groups_per_profile)
    assert 7 == found.production.groups_per_profile


async def test_limits_and_anonymous_profiles_are_settings_too(store, second):
    made = await store.registry.create_application("one")
    assert (True, 6000, None) == (
        made.anonymous_profiles,
        made.anonymous_per_minute,
        made.requests_per_second,
    )
    await asyncio.gather(
        store.registry.update_application("one", anonymous_profiles=False),
        second.registry.update_application("one", anonymous_per_minute=1),
        second.registry.update_application("one", requests_per_second=7),
    )
    found = (await second.registry.list_applications())[0]
    assert (False, 1, 7) == (
        found.anonymous_profiles,
        found.anonymous_per_minute,
        found.requests_per_second,
    )
    changed = await store.registry.update_application("one", requests_per_second=None)
    assert (False, 1, None) == (
        changed.anonymous_profiles,
        changed.anonymous_per_minute,
        changed.requests_per_second,
    )


async def test_a_document_of_an_older_version_has_the_defaults(store):
    """0.2 wrote none of these members."""
    made = await store.registry.create_application("one")
    key = keys.key(keys.REGISTRY, "applications")
    raw = await store.connection.command(key, "HGET", key, str(made.number))
    limits = ("anonymous_per_minute", "requests_per_second")
    names = ("anonymous_profiles", *limits, "signing_secrets", "dynamic_groups")
    older = {name: value for name, value in msgspec.json.decode(raw).items() if name not in names}
    assert len(msgspec.json.decode(raw)) == len(older) + 5
    await store.connection.command(key, "HSET", key, str(made.number), msgspec.json.encode(older))

    [found] = await store.registry.list_applications()
    assert (True, 6000, None, {}, 1000) == tuple(getattr(found, name) for name in names)
    changed = await store.registry.update_application("one", requests_per_second=3)
    assert (True, 6000, 3, {}, 1000) == tuple(getattr(changed, name) for name in names)


@pytest.mark.parametrize(
    "change",
    [
        {"profiles": "some"},
        {"groups_per_profile": 0},
        {"groups_per_profile": 10_001},
        {"anonymous_profiles": "yes"},
        {"anonymous_profiles": None},
        {"anonymous_per_minute": 0},
        {"anonymous_per_minute": None},
        {"requests_per_second": 0},
        {"requests_per_second": 1.5},
        {"requests_per_second": 1_000_001},
        {"dynamic_groups": 0},
        {"dynamic_groups": 5_001},
        {"name": ""},
    ],
)
async def test_a_setting_that_cannot_be_is_refused(store, change):
    await store.registry.create_application("one")
    with pytest.raises(Invalid):
        await store.registry.update_application("one", **change)


async def test_an_unknown_application_cannot_be_changed(store):
    with pytest.raises(NotFound):
        await store.registry.update_application("nobody", name="N")
    with pytest.raises(NotFound):
        await store.registry.delete_application("nobody")


@pytest.fixture
def quickly(monkeypatch):
    """Deletions that do not wait for other processes, of which there are none."""
    monkeypatch.setattr(registry, "SETTLE_SECONDS", 0.01)


async def test_an_application_that_holds_something_is_not_deleted(store, quickly):
    application = await store.registry.create_application("one", partitions=8)
    env = application.environments["development"]
    group = await store.groups.create_group(env, NewGroup(name="g"))
    await store.members.add_members(env, group.number, new())
    with pytest.raises(Conflict):
        await store.registry.delete_application("one")
    await store.groups.delete_group(env, group.id)
    with pytest.raises(Conflict):
        await store.registry.delete_application("one")
    await work(store, grace_us=0)
    await store.registry.delete_application("one")
    assert await store.registry.application("one") is None


async def test_what_erasing_leaves_of_a_deleted_application_is_no_finding(store, quickly):
    # For a day `verify` exited 1 about a fence, which goes by itself.
    application = await store.registry.create_application("one")
    env = application.production
    [erased] = await store.profiles.resolve_identities(env, "customer_id", ["c"], create=True)
    await store.profiles.erase_profile(env, erased)
    await store.registry.delete_application("one")
    fence = keys.of_profile(env.home(env.mixer.mix(erased)), "fence", env.mixer.mix(erased))
    assert await store.connection.command(fence, "EXISTS", fence)
    assert [] == (await verify(store)).problems


async def test_a_credential_made_while_its_application_is_deleted_opens_no_later_one(
    store, second, quickly, monkeypatch
):
    # It was written after the deletion had looked for those that name the application.
    await store.registry.create_application("one")
    replace = store.registry._replace

    async def late(kind, *arguments):
        monkeypatch.undo()
        monkeypatch.setattr(registry, "SETTLE_SECONDS", 0.01)
        await second.registry.delete_application("one")
        await replace(kind, *arguments)

    monkeypatch.setattr(store.registry, "_replace", late)
    with pytest.raises(NotFound):
        await store.registry.create_credential(["one"], ["admin"])
    assert [False] == [each.active for each in await second.registry.list_credentials()]


async def field(store, kind, name):
    key = keys.key(keys.REGISTRY, kind)
    return await store.connection.command(key, "HGET", key, name)


async def put(store, kind, name, document):
    key = keys.key(keys.REGISTRY, kind)
    await store.connection.command(key, "HSET", key, name, msgspec.json.encode(document))


async def test_tokens_and_credentials_of_a_deleted_application_open_no_later_one(
    store, quickly, monkeypatch
):
    """`app delete one`, `app create one`: the old token read the groups of the new tenant."""
    await store.registry.create_application("one")
    await store.registry.create_application("other")
    alone, _ = await store.registry.create_credential(["one"], ["admin"])
    both, _ = await store.registry.create_credential(["one", "other"], ["admin"])
    await store.registry.delete_application("one")
    with pytest.raises(Conflict, match="deleted within the last 8 hours"):
        await store.registry.create_application("one")
    now = registry._now_us()
    later = now + (auth.LIFETIME_SECONDS + 61) * 1_000_000
    monkeypatch.setattr(registry, "_now_us", lambda: later)
    await store.registry.create_application("one")
    assert await field(store, "deleted", "one") is None
    found = {each.id: each for each in await store.registry.list_credentials()}
    assert (False, ()) == (found[alone.id].active, found[alone.id].applications)
    assert (True, ("other",)) == (found[both.id].active, found[both.id].applications)


async def test_what_is_written_while_an_application_is_deleted_is_not_lost(store, monkeypatch):
    """A process whose copy was a second old created a group between the look and the removal."""
    env = (await store.registry.create_application("one", partitions=8)).production

    async def writes(seconds):
        assert 2 * registry.POLL_SECONDS == seconds
        await store.groups.create_group(env, NewGroup(name="g", custom_id="g"))

    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "sleep", writes)
        with pytest.raises(Conflict, match="still has groups"):
            await store.registry.delete_application("one")
    assert env.number == (await store.registry.application("one")).production.number
    assert "g" == (await store.groups.get_group(env, "g")).name


async def test_nobody_knows_an_application_that_is_being_deleted(store, second, monkeypatch):
    await store.registry.create_application("one")
    monkeypatch.setattr(registry, "SETTLE_SECONDS", 2.0)
    assert await second.registry.application("one") is not None
    deleting = asyncio.create_task(store.registry.delete_application("one"))
    await asyncio.sleep(1.6)
    assert not deleting.done()
    assert await second.registry.application("one") is None
    await deleting


@pytest.mark.parametrize("written", [False, True])
async def test_a_deletion_that_died_is_finished_by_the_next_one(
    store, second, quickly, monkeypatch, written
):
    env = (await store.registry.create_application("one")).production

    async def dies(*args):
        raise Unavailable("gone")

    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "sleep", dies)
        with pytest.raises(Unavailable):
            await store.registry.delete_application("one")
    assert [] == await second.registry.list_applications()
    with pytest.raises(Conflict, match="delete it again"):
        await second.registry.create_application("one")
    if written:
        await store.groups.create_group(env, NewGroup(name="g"))
        with pytest.raises(Conflict, match="still has groups"):
            await second.registry.delete_application("one")
        assert ["one"] == [each.client_id for each in await store.registry.list_applications()]
    else:
        await second.registry.delete_application("one")
        assert await field(store, "client_ids", "one") is None


async def test_an_application_deleted_twice_at_once_is_deleted(store, second, quickly):
    await store.registry.create_application("one")
    done = await asyncio.gather(
        *(each.registry.delete_application("one") for each in (store, second)),
        return_exceptions=True,
    )
    assert {None, NotFound} >= {each and type(each) for each in done}
    assert None in done
    assert [] == await store.registry.list_applications()


@pytest.mark.parametrize("kind", ["reserved", "erasing"])
async def test_an_application_with_something_unfinished_is_not_deleted(store, quickly, kind):
    """Its memberships were gone, so it was forgotten, and the identities stayed for ever."""
    env = (await store.registry.create_application("one")).production
    key = keys.key(env.partitions[0], kind)
    add = ("ZADD", key, 1, "1:c:x") if kind == "reserved" else ("SADD", key, new())
    await store.connection.command(key, *add)
    with pytest.raises(Conflict):
        await store.registry.delete_application("one")
    await store.connection.command(key, "DEL", key)


async def test_documents_of_a_later_version_are_changed_and_keep_what_it_wrote(store):
    """Encoded again they were not what is stored, so a change was tried again for ever."""
    made = await store.registry.create_application("one")
    credential, _ = await store.registry.create_credential(["one"], ["admin"])
    for kind, name in (("applications", str(made.number)), ("credentials", credential.id)):
        document = msgspec.json.decode(await field(store, kind, name))
        await put(store, kind, name, {"later": 1, **document})
    async with asyncio.timeout(5):
        await store.registry.update_application("one", name="new")
        await store.registry.deactivate_credential(credential.id)
    for kind, name in (("applications", str(made.number)), ("credentials", credential.id)):
        assert 1 == msgspec.json.decode(await field(store, kind, name))["later"]
    assert "new" == (await store.registry.application("one")).name
    assert not (await store.registry.credential(credential.id)).active


async def test_the_directory_of_an_application_that_was_lost_is_given_to_nobody(store):
    """A failover lost the counter and the document: the next tenant found another's groups."""
    lost = (await store.registry.create_application("one")).production
    await store.groups.create_group(lost, NewGroup(name="secret"))
    registry_kinds = ("applications", "client_ids", "workspaces", "numbers")
    held = {}
    for kind in registry_kinds:
        key = keys.key(keys.REGISTRY, kind)
        held[kind] = await store.connection.command(key, "HGETALL", key)
        await store.connection.command(key, "DEL", key)
    made = await store.registry.create_application("two")
    numbers = {each.number for each in made.environments.values()}
    assert lost.number not in numbers
    for kind in registry_kinds:
        key = keys.key(keys.REGISTRY, kind)
        await store.connection.command(key, "DEL", key)
        await store.connection.command(key, "HSET", key, *held[kind])


async def test_following_the_registry_survives_a_command_that_was_cancelled(store, monkeypatch):
    """A node left the map, its pending command was cancelled, and so was the process's poll."""
    monkeypatch.setattr(registry, "POLL_SECONDS", 0.01)
    seen = []

    async def confirm():
        seen.append(1)
        raise asyncio.CancelledError

    monkeypatch.setattr(store.registry, "_confirm", confirm)
    polling = asyncio.create_task(store.registry.poll())
    async with asyncio.timeout(5):
        while len(seen) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not polling.done()
    polling.cancel()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await polling


async def test_a_lost_counter_makes_no_two_applications_share_their_data(store):
    """A failover lost the counters. The next application got the numbers of the first."""
    first = await store.registry.create_application("one")
    counters = keys.key(keys.REGISTRY, "numbers")
    await store.connection.command(counters, "DEL", counters)
    second = await store.registry.create_application("two")
    assert {"one", "two"} == {each.client_id for each in await store.registry.list_applications()}
    numbers = [each.number for app in (first, second) for each in app.environments.values()]
    assert 4 == len(set(numbers))


async def test_a_change_is_seen_by_others_within_a_second_or_so(store, second):
    await store.registry.create_application("one")
    assert (await second.registry.application("one")).name == "one"
    await store.registry.update_application("one", name="new")
    deadline = time.monotonic() + 2
    while (await second.registry.application("one")).name != "new":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_a_credential_has_a_secret_that_is_not_kept(store):
    await store.registry.create_application("one")
    credential, secret = await store.registry.create_credential(["one"], ["admin"])
    assert credential == await store.registry.credential(credential.id)
    key = keys.key(keys.REGISTRY, "credentials")
    assert secret.encode() not in await store.connection.command(key, "HGET", key, credential.id)


@pytest.mark.parametrize(
    ("applications", "scopes", "refusal"),
    [
        (["nobody"], ["admin"], NotFound),
        ([], ["admin"], Invalid),
        (["one"], [], Invalid),
        (["one"], ["all"], Invalid),
    ],
)
async def test_a_credential_is_for_something(store, applications, scopes, refusal):
    await store.registry.create_application("one")
    with pytest.raises(refusal):
        await store.registry.create_credential(applications, scopes)


async def test_a_deactivated_credential_is_so_for_others_too(store, second):
    await store.registry.create_application("one")
    credential, _ = await store.registry.create_credential(["one"], ["admin"])
    assert (await second.registry.credential(credential.id)).active
    await store.registry.deactivate_credential(credential.id)
    deadline = time.monotonic() + 2
    while (await second.registry.credential(credential.id)).active:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_an_unknown_credential_is_none_and_cannot_be_deactivated(store):
    assert await store.registry.credential("nobody") is None
    with pytest.raises(NotFound):
        await store.registry.deactivate_credential("nobody")


async def test_processes_that_start_together_sign_with_one_key(store, second):
    made = await asyncio.gather(
        *(each.registry.signing_key() for each in (store, second, store, second))
    )
    assert 1 == len({each.kid for each in made})


async def test_a_rotated_key_is_published_before_it_signs(store, second):
    old = await store.registry.signing_key()
    rotated = await store.registry.rotate_keys()
    assert old == await store.registry.signing_key()
    assert rotated == (await second.registry.signing_keys(rotated.kid))[rotated.kid]


async def test_a_key_that_signs_no_more_is_kept_for_its_tokens_and_then_forgotten(
    store, monkeypatch
):
    old = await store.registry.signing_key()
    now = registry._now_us()
    rotated = await store.registry.rotate_keys()
    monkeypatch.setattr(registry, "_now_us", lambda: now + 7 * 3_600_000_000)
    await store.registry.rotate_keys()
    assert {old.kid, rotated.kid} <= set(await store.registry.signing_keys())
    monkeypatch.setattr(registry, "_now_us", lambda: now + 9 * 3_600_000_000)
    await store.registry.rotate_keys()
    assert old.kid not in await store.registry.signing_keys()


async def test_unknown_names_are_no_flood_of_reads(store):
    await store.registry.credential("first")
    before = store.connection.stats.commands
    await asyncio.gather(*(store.registry.credential(str(n)) for n in range(1000)))
    assert store.connection.stats.commands - before < 20


async def test_a_copy_that_was_not_confirmed_is_used_no_longer(monkeypatch):
    monkeypatch.setattr(registry, "STALE_SECONDS", 0.3)
    server = backings.embedded()
    try:
        store = await Store.open(server.url)
        await store.registry.create_application("one")
        server.kill()
        await store.registry.application("one")
        await asyncio.sleep(0.4)
        with pytest.raises(Unavailable):
            await store.registry.application("one")
        await store.close()
    finally:
        server.stop()


async def test_another_storage_format_is_refused(store, backing):
    key = keys.key(keys.REGISTRY, "format")
    await store.connection.command(key, "SET", key, "99")
    with pytest.raises(Unusable, match="storage format 99"):
        await Store.open(backing.url)
    await store.connection.command(key, "SET", key, keys.FORMAT)


async def test_a_full_store_can_be_opened_and_a_credential_deactivated_in_it():
    # A process that started then wrote the storage format first, and could not even read.
    server = backings.embedded()
    store = await Store.open(server.url)
    await store.registry.create_application("acme")
    credential, _ = await store.registry.create_credential(["acme"], ["admin"])
    server.ask("CONFIG", "SET", "maxmemory", "1")
    late = await Store.open(server.url)
    await late.registry.deactivate_credential(credential.id)
    [held] = await late.registry.list_credentials()
    await late.close()
    await store.close()
    server.stop()
    assert not held.active


async def test_an_application_is_found_by_its_workspace_among_those_that_are_asked_for(
    store, second, monkeypatch
):
    monkeypatch.setattr(registry, "SETTLE_SECONDS", 0.01)
    one = await store.registry.create_application("one", workspace_id=41)
    await store.registry.create_application("two", workspace_id=42)
    mine = frozenset({"one"})

    assert "one" == (await store.registry.application_of(41, mine)).client_id
    for workspace in (42, 43):
        assert None is await store.registry.application_of(workspace, mine)
        assert None is await store.registry.application_of(workspace, frozenset())
    three = await second.registry.create_application("three")
    found = await store.registry.application_of(three.workspace_id, frozenset({"one", "three"}))
    assert "three" == found.client_id
    await second.registry.delete_application("one")
    await store.registry.list_applications()
    assert None is await store.registry.application_of(one.workspace_id, mine)
