"""Profiles over HTTP: made with and without a token, read, changed, erased, and by whom."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from service import auth, profiles, signing
from service.config import Config
from service.errors import Unavailable
from service.grouping import GroupAttribute
from service.store import Store
from service.store_definitions import DefinitionChanges, NewDefinition
from service.store_records import ProfileChanges
from service.verify import verify
from service.worker import work
from tests.client import DEMO, GROUPS, HOST, P1, Api, Client, opened

if TYPE_CHECKING:
    from service.environment import Application, Environment
    from tests import backings
    from tests.client import Answer

PROFILE = f"{DEMO}/profile"
V1 = "/api/v1"
FIELDS = [
    "id",
    "url",
    "client_id",
    "nickname",
    "created_at",
    "custom_id",
    "custom_data",
    "attributes",
    "points",
    "reported_count",
    "badges",
    "profile_groups_url",
    "subscribe_channel",
    "chat_room_memberships_url",
]
GONE = "The profile of this token was erased."


def one(name: str) -> str:
    return f"{V1}/profiles/{name}/"


def listed(**given: str) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in given.items()]


def shown(answer: Answer) -> dict[str, str]:
    return {each.key: each.value for each in answer.body.attributes}


async def demo(api: Api) -> Application:
    application = await api.store.registry.application("demo")
    assert application is not None
    return application


async def demo_env(api: Api) -> Environment:
    return (await demo(api)).production


async def setting(api: Api, **settings: Any) -> None:
    await api.store.registry.update_application("demo", **settings)


@pytest.fixture
def nobody(admin: Client) -> Client:
    """Somebody without a token."""
    return admin.using(None)


async def born(client: Client, **fields: Any) -> tuple[Client, str]:
    """Make a profile: its own client, and its id."""
    made = (await client.post(f"{PROFILE}/", fields, 201)).body
    return client.using(made.access_token), made.id


# --- creating


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer ", "bearer", ""])
@pytest.mark.parametrize("body", [None, b"", b" \n", {}, {"nickname": None}, {"nickname": ""}])
async def test_anybody_makes_a_profile_with_an_empty_body(
    nobody: Client, header: str | None, body: object
) -> None:
    headers = {} if header is None else {"Authorization": header}
    answer = await nobody.post(f"{PROFILE}/", body, 201, headers=headers)

    made = answer.body
    assert [*FIELDS, "access_token"] == list(answer.plain)
    assert f"Profile {made.id[:8]}" == made.nickname
    assert ("demo", None, None, [], 0, 0, [], None, None) == (
        made.client_id,
        made.custom_id,
        made.custom_data,
        made.attributes,
        made.points,
        made.reported_count,
        made.badges,
        made.subscribe_channel,
        made.chat_room_memberships_url,
    )
    assert 4 == uuid.UUID(made.id).version
    assert f"{HOST}/api/v1/profiles/{made.id}/?client_id=demo" == made.url
    assert f"{HOST}{DEMO}/profiles/{made.id}/profile-groups/" == made.profile_groups_url


async def test_a_nickname_is_kept(nobody: Client) -> None:
    own, profile_id = await born(nobody, nickname="Zed é🙂")

    assert "Zed é🙂" == (await own.get(f"{PROFILE}/")).body.nickname
    assert "Zed é🙂" == (await own.get(one(profile_id))).body.nickname


async def test_the_token_is_told_once(nobody: Client, admin: Client) -> None:
    own, profile_id = await born(nobody)

    for answer in (
        await own.get(PROFILE),
        await own.patch(PROFILE, {"nickname": "N"}),
        await admin.get(one(profile_id)),
        await admin.patch(one(profile_id), {}),
    ):
        assert list(answer.plain) == FIELDS


async def test_a_valid_token_of_any_kind_still_creates(
    api: Api, admin: Client, nobody: Client
) -> None:
    own, profile_id = await born(nobody)
    made = {profile_id}
    for client in (own, admin, await api.client("groups:read"), await api.client("profiles:write")):
        made.add((await born(client, nickname="N"))[1])

    assert len(made) == 5


async def test_a_token_that_is_not_valid_creates_nothing(api: Api, admin: Client) -> None:
    expired = await auth.mint(
        api.store.registry,
        applications=["demo"],
        scopes=["admin"],
        subject="s",
        lifetime_seconds=-1,
    )
    for header in ("Bearer nonsense", f"Bearer {expired}", "Token abc", "Basic YTpi"):
        answer = await admin.using(None).post(
            f"{PROFILE}/", None, 401, headers={"Authorization": header}
        )
        assert answer.headers["www-authenticate"].startswith("Bearer")
    [count] = await api.store.members.count_members(await demo_env(api), [0])
    assert 0 == count


async def test_a_token_of_another_application_creates_nothing(api: Api, nobody: Client) -> None:
    await api.store.registry.create_application("second")
    foreign = await api.client("admin", applications=("second",))
    own, _ = await born(nobody)

    await foreign.post(f"{PROFILE}/", {}, 403)
    await own.post(f"{V1}/applications/second/profile/", {}, 403)
    await own.post(f"{V1}/applications/never/profile/", {}, 403)


async def test_an_unknown_application_has_no_profiles(nobody: Client) -> None:
    await nobody.post(f"{V1}/applications/never/profile/", {}, 404)


@pytest.mark.parametrize(
    "fields",
    [{"custom_id": "c"}, {"custom_data": "d"}, {"attributes": [{"key": "k", "value": "v"}]}],
)
async def test_more_than_a_nickname_needs_the_scope(
    api: Api, nobody: Client, fields: dict[str, Any]
) -> None:
    own, _ = await born(nobody)
    lacking = await api.client("profiles:read")

    assert "scope profiles:write" in (await nobody.post(PROFILE, fields, 401)).body.detail
    for client in (own, lacking):
        assert "scope profiles:write" in (await client.post(PROFILE, fields, 403)).body.detail
    made = (await (await api.client("profiles:write")).post(PROFILE, fields, 201)).plain
    assert fields == {name: made[name] for name in fields}


async def test_a_taken_custom_id_is_a_conflict(admin: Client) -> None:
    await admin.post(PROFILE, {"custom_id": "x"}, 201)

    answer = await admin.post(PROFILE, {"custom_id": "x", "nickname": "N"}, 409)

    detail = "profile with custom_id 'x' already exists."
    assert {"detail": detail, "error_code": "conflict"} == answer.plain


async def test_switched_off_only_the_scope_creates(api: Api, nobody: Client) -> None:
    own, _ = await born(nobody)
    await setting(api, anonymous_profiles=False)

    said = (await nobody.post(PROFILE, {}, 401)).body.detail
    assert "switched off for this application" in said
    for client in (own, await api.client("profiles:read")):
        assert "switched off" in (await client.post(PROFILE, {}, 403)).body.detail
    await (await api.client("profiles:write")).post(PROFILE, {}, 201)


async def test_a_client_makes_so_many_profiles_a_minute_without_the_scope(
    api: Api, nobody: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert profiles.ADDRESS_PER_MINUTE == 60
    monkeypatch.setattr(profiles, "ADDRESS_PER_MINUTE", 3)
    own, _ = await born(nobody)
    await born(own)
    await born(await api.client("profiles:read"))

    for client in (nobody, own, await api.client("profiles:read")):
        answer = await client.post(PROFILE, {}, 429)
        assert "throttled" == answer.body.error_code
        assert 1 <= int(answer.headers["retry-after"]) <= 20
    for _ in range(4):
        await born(await api.client("profiles:write"))


async def test_the_application_has_a_limit_for_all_clients(api: Api, nobody: Client) -> None:
    await setting(api, anonymous_per_minute=3)

    done = [(await nobody.call("POST", PROFILE, {})).status for _ in range(5)]

    assert [201, 201, 201, 429, 429] == done
    await (await api.client("profiles:write")).post(PROFILE, {}, 201)


async def test_a_client_over_its_limit_uses_up_nobody_elses(
    valkey: backings.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "ADDRESS_PER_MINUTE", 1)
    async with opened(valkey.url, Config(trusted_proxies=("127.0.0.1",))) as api:
        await setting(api, anonymous_per_minute=4)
        nobody = api.admin.using(None)

        async def make(forwarded: str) -> int:
            headers = {"X-Forwarded-For": forwarded}
            return (await nobody.call("POST", PROFILE, {}, headers=headers)).status

        assert 201 == await make("192.0.2.1")
        assert {429} == {await make(f"198.51.100.{n}, 192.0.2.1") for n in range(10)}
        assert 201 == await make("198.51.100.1, 192.0.2.2, 127.0.0.1")
        assert 201 == await make("2001:db8::1")
        assert 429 == await make("2001:db8::ffff:2")
        assert 201 == await make("2001:db8:0:1::1")
        assert 429 == await make("192.0.2.3")
        assert [] == (await verify(api.store)).problems


@pytest.mark.parametrize(
    ("trusted", "forwarded", "counted"),
    [
        ((), "192.0.2.1", "127.0.0.1"),
        (("10.0.0.0/8",), "192.0.2.1", "127.0.0.1"),
        (("127.0.0.1",), None, "127.0.0.1"),
        (("127.0.0.1",), "192.0.2.1", "192.0.2.1"),
        (("127.0.0.1",), "192.0.2.9, 192.0.2.1", "192.0.2.1"),
        (("127.0.0.1", "10.0.0.0/8"), "192.0.2.9, 192.0.2.1, 10.1.2.3", "192.0.2.1"),
        (("127.0.0.1", "10.0.0.0/8"), "10.1.1.1, 10.1.2.3", "10.1.1.1"),
        (("127.0.0.1",), "192.0.2.1:4711", "192.0.2.1"),
        (("127.0.0.1",), "[2001:db8::7]:4711", "2001:db8::/64"),
        (("127.0.0.1",), "2001:db8::7", "2001:db8::/64"),
        (("127.0.0.1",), "::ffff:192.0.2.1", "192.0.2.1"),
        (("*",), "192.0.2.9, 192.0.2.1", "192.0.2.1"),
        (("127.0.0.1",), "192.0.2.1, unknown", "127.0.0.1"),
        (("127.0.0.1",), "999.0.2.1", "unknown"),
        (("127.0.0.1",), "x" * 5000, "127.0.0.1"),
    ],
)
async def test_a_client_is_who_the_trusted_proxies_say(
    valkey: backings.Server,
    monkeypatch: pytest.MonkeyPatch,
    trusted: tuple[str, ...],
    forwarded: str | None,
    counted: str,
) -> None:
    callers = []
    async with opened(valkey.url, Config(trusted_proxies=trusted)) as api:

        async def take(_env: Environment, caller: str, *_limit: object) -> None:
            callers.append(caller)

        monkeypatch.setattr(api.store.limits, "take", take)
        headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
        await api.admin.using(None).post(PROFILE, {}, 201, headers=headers)

    assert [f"anonymous:{counted}", "anonymous"] == callers


# --- the current profile


async def test_a_profile_reads_and_changes_itself(nobody: Client) -> None:
    own, profile_id = await born(nobody, nickname="N")

    changed = await own.patch(f"{PROFILE}/", {"nickname": "New", "custom_data": '{"a":1}'})

    assert (profile_id, "New", '{"a":1}') == (
        changed.body.id,
        changed.body.nickname,
        changed.body.custom_data,
    )
    for read in (await own.get(PROFILE), await own.get(one(profile_id))):
        assert changed.plain == read.plain
    cleared = (await own.patch(PROFILE, {"nickname": None, "custom_data": None})).body
    assert (f"Profile {profile_id[:8]}", None) == (cleared.nickname, cleared.custom_data)
    assert cleared == (await own.patch(PROFILE, {})).body
    assert "N2" == (await own.patch(one(profile_id), {"nickname": "N2"})).body.nickname


async def test_a_token_for_no_profile_gets_one_made_up(api: Api, admin: Client) -> None:
    other = await api.client("groups:read")
    made = (await admin.get(f"{PROFILE}/")).body

    assert ("admin", "demo", [], None) == (
        made.nickname,
        made.client_id,
        made.attributes,
        made.custom_id,
    )
    assert made.created_at is not None
    assert made == (await admin.get(PROFILE)).body
    assert made.id != (await other.get(PROFILE)).body.id
    assert 0 == (await admin.get(made.profile_groups_url)).body.count
    assert made == (await admin.get(made.url)).body


async def test_the_made_up_profile_can_be_a_member_as_any_uuid(admin: Client) -> None:
    made = (await admin.get(PROFILE)).body
    group = await admin.group()
    await admin.post(f"{GROUPS}/{group}/members/", {"profile_ids": [made.id]})

    assert 1 == (await admin.get(made.profile_groups_url)).body.count


async def test_a_token_for_no_profile_changes_none(admin: Client) -> None:
    answer = await admin.patch(PROFILE, {"nickname": "N"}, 403)

    assert "profiles/{id}/" in answer.body.detail
    assert "admin" == (await admin.get(PROFILE)).body.nickname


async def test_the_current_profile_needs_a_valid_token(api: Api, nobody: Client) -> None:
    await api.store.registry.create_application("second")
    foreign = await api.client("admin", applications=("second",))
    for client, status in ((nobody, 401), (nobody.using("x"), 401), (foreign, 403)):
        await client.get(PROFILE, status)
        await client.patch(PROFILE, {"nickname": "N"}, status)


@pytest.mark.parametrize("path", [PROFILE, "its own"])
@pytest.mark.parametrize("fields", [{"attributes": []}, {"custom_id": "c"}])
async def test_a_profile_gives_itself_no_attributes_and_no_custom_id(
    nobody: Client, path: str, fields: dict[str, Any]
) -> None:
    own, profile_id = await born(nobody)

    answer = await own.patch(
        one(profile_id) if path == "its own" else path, {"nickname": "N", **fields}, 403
    )

    assert "nickname and custom_data alone" in answer.body.detail
    assert f"Profile {profile_id[:8]}" == (await own.get(PROFILE)).body.nickname


async def test_a_profile_reads_and_changes_no_other(admin: Client, nobody: Client) -> None:
    own, profile_id = await born(nobody)
    _, other = await born(admin, custom_id="other")

    for name in (other, "other", "mpid:7", "never-heard-of", P1):
        assert "alone" in (await own.get(one(name), 403)).body.detail
        await own.patch(one(name), {"nickname": "N"}, 403)
        await own.delete(one(name), status=403)
    await own.delete(one(profile_id), status=403)
    assert (await admin.get(one("other"))).body.nickname == f"Profile {other[:8]}"


async def test_a_profile_may_name_itself_by_its_custom_id(api: Api, admin: Client) -> None:
    own, profile_id = await born(admin, custom_id="a/b")

    assert profile_id == (await own.get(one("a%2Fb"))).body.id


async def test_a_token_ends_with_its_profile(api: Api, admin: Client, nobody: Client) -> None:
    own, profile_id = await born(nobody)
    await admin.delete(one(profile_id), status=200)

    async def refused() -> None:
        for path in (PROFILE, one(profile_id)):
            for answer in (await own.get(path, 401), await own.patch(path, {"nickname": "N"}, 401)):
                assert answer.body.detail == GONE
                assert 'error="invalid_token"' in answer.headers["www-authenticate"]

    await refused()
    # It comes back by its id, first with memberships alone, then with a record of its own.
    group = await admin.group()
    await admin.post(f"{GROUPS}/{group}/members/", {"profile_ids": [profile_id]})
    await refused()
    await admin.patch(one(profile_id), {"nickname": "new"})
    await refused()
    assert "new" == (await admin.get(one(profile_id))).body.nickname


async def test_a_token_made_for_a_later_record_does_not_read_an_earlier_one(
    api: Api, admin: Client, nobody: Client
) -> None:
    _, profile_id = await born(nobody)
    token = signing.profile_token(await demo(api), uuid.UUID(profile_id).bytes, 2**52)

    assert (await admin.using(token).get(PROFILE, 401)).body.detail == GONE


# --- one profile


async def test_a_profile_is_found_by_all_its_names(api: Api, admin: Client) -> None:
    _, profile_id = await born(admin, custom_id="ü/ñ 1", nickname="N")
    env = await demo_env(api)
    for kind, value in (("mpid", "-7346244611012968789"), ("email", "e@example.org")):
        await api.store.profiles.add_identity(env, uuid.UUID(profile_id).bytes, kind, value)
    reader = await api.client("profiles:read")

    names = [profile_id, profile_id.upper(), "%C3%BC%2F%C3%B1%201", "mpid:-7346244611012968789"]
    read = [(await reader.get(one(name))).plain for name in names]

    assert [read[0]] * 4 == read
    assert (profile_id, "ü/ñ 1") == (read[0]["id"], read[0]["custom_id"])
    group = await admin.group()
    await admin.get(f"{GROUPS}/{group}/members/{names[3]}/", 404)
    assert 0 == (await admin.get(f"{DEMO}/profiles/{names[3]}/profile-groups/")).body.count


@pytest.mark.parametrize(
    "name", [P1, "nobody", "mpid:1", "mpid:99999999999999999999", "mpid:x", "%00", "x" * 300]
)
async def test_of_whom_nothing_is_known_is_not_found(admin: Client, name: str) -> None:
    await admin.get(one(name), 404)
    await admin.patch(one(name), {"nickname": "N"}, 404)
    await admin.patch(one(name), {"custom_id": "c"}, 404)
    await admin.delete(one(name), status=404)
    # And it is not known now, nor is the custom id taken.
    await admin.get(one(name), 404)
    await admin.get(one("c"), 404)
    await admin.post(PROFILE, {"custom_id": "c"}, 201)


async def test_mpids_that_are_none_are_custom_ids(admin: Client) -> None:
    for name in ("mpid:01", "mpid:-0", "mpid:+1", "mpid:", "MPID:1", "mpid:9223372036854775808"):
        _, profile_id = await born(admin, custom_id=name)
        assert profile_id == (await admin.get(one(name))).body.id


async def test_whoever_is_a_member_is_known_and_gets_a_record_when_changed(admin: Client) -> None:
    group = await admin.group()
    await admin.post(f"{GROUPS}/{group}/members/", {"profile_ids": [P1]})

    known = (await admin.get(one(P1))).body
    assert (None, "Profile 174cc6dd", []) == (known.created_at, known.nickname, known.attributes)
    changed = (await admin.patch(one(P1), {"attributes": listed(a="b")})).body
    assert changed.created_at is not None
    assert changed == (await admin.get(one(P1))).body
    rows = (await admin.get(f"{GROUPS}/{group}/members/")).body.results
    assert ["Profile 174cc6dd"] == [row.nickname for row in rows]


async def test_attributes_are_replaced(admin: Client) -> None:
    _, profile_id = await born(admin, attributes=listed(b="1", a="2"))
    path = one(profile_id)

    assert listed(a="2", b="1") == (await admin.get(path)).plain["attributes"]
    assert {"b": "3", "c": ""} == shown(
        await admin.patch(path, {"attributes": listed(b="3", c="")})
    )
    assert {"b": "3", "c": ""} == shown(await admin.patch(path, {"nickname": "N"}))
    assert {} == shown(await admin.patch(path, {"attributes": []}))


@pytest.mark.parametrize(
    ("value", "text"),
    [("12", "12"), ("1.0", "1.0"), ("true", "true"), ("null", ""), ('["a","b"]', '["a","b"]')],
)
async def test_values_that_are_no_texts_are_shown_and_survive(
    api: Api, admin: Client, value: str, text: str
) -> None:
    _, profile_id = await born(admin)
    env, id16 = await demo_env(api), uuid.UUID(profile_id).bytes
    await api.store.records.update_profile(
        env, id16, ProfileChanges(attributes={"k": value.encode()})
    )
    path = one(profile_id)

    read = (await admin.get(path)).plain["attributes"]
    assert listed(k=text) == read
    await admin.patch(path, {"attributes": [*read, *listed(other="x")]})

    kept = await api.store.records.get_profile(env, id16)
    assert {"k": value.encode(), "other": b'"x"'} == {
        each.name: each.value for each in kept.attributes
    }


async def test_a_custom_id_is_given_once(admin: Client) -> None:
    _, one_id = await born(admin)
    _, other_id = await born(admin, custom_id="taken")

    for _ in range(2):
        changed = (await admin.patch(one(one_id), {"custom_id": "mine", "nickname": "N"})).body
        assert ("mine", "N") == (changed.custom_id, changed.nickname)
    answer = await admin.patch(one(one_id), {"custom_id": "second", "nickname": "X"}, 409)
    assert "The profile has another custom_id, which stays." == answer.body.detail
    _, third_id = await born(admin)
    answer = await admin.patch(one(third_id), {"custom_id": "taken", "nickname": "X"}, 409)
    assert "profile with custom_id 'taken' already exists." == answer.body.detail
    await admin.get(one("second"), 404)
    assert {"N", f"Profile {third_id[:8]}", f"Profile {other_id[:8]}"} == {
        (await admin.get(one(each))).body.nickname for each in (one_id, third_id, other_id)
    }


async def test_a_refused_change_gives_no_custom_id(admin: Client) -> None:
    # The attributes were measured only after the custom id was given, and it stays for good.
    _, profile_id = await born(admin)
    large = listed(**{f"k{n}": "\u20ac" * 4096 for n in range(100)})

    refusal = await admin.patch(one(profile_id), {"custom_id": "c", "attributes": large}, 400)

    assert "1,048,576 bytes together" in refusal.body["attributes"][0]
    assert (await admin.get(one(profile_id))).body.custom_id is None
    await admin.get(one("c"), 404)


async def test_erasing_says_what_it_removed(admin: Client) -> None:
    _, profile_id = await born(admin, custom_id="c", attributes=listed(a="1", b="2"))
    for _ in range(3):
        group = await admin.group()
        await admin.post(f"{GROUPS}/{group}/members/", {"custom_ids": ["c"]})

    answer = await admin.delete(one("c"), status=200)

    assert {
        "id": profile_id,
        "memberships": 3,
        "attributes": 2,
        "identities": 1,
        "instances": 0,
    } == answer.plain
    for name in ("c", profile_id):
        await admin.get(one(name), 404)
        await admin.delete(one(name), status=404)
    assert 0 == (await admin.get(f"{GROUPS}/{group}/members/")).body.count


async def test_whoever_is_being_erased_is_a_503(api: Api, admin: Client, nobody: Client) -> None:
    own, profile_id = await born(nobody)
    env, id16 = await demo_env(api), uuid.UUID(profile_id).bytes
    mixed = env.mixer.mix(id16)
    key = env.home(mixed) + b":erasing"
    await api.store.connection.command(key, "SADD", key, mixed)

    for client, path in ((own, PROFILE), (own, one(profile_id)), (admin, one(profile_id))):
        for answer in (
            await client.get(path, 503),
            await client.patch(path, {"nickname": "N"}, 503),
        ):
            assert "1" == answer.headers["retry-after"]
    await admin.patch(one(profile_id), {"custom_id": "c"}, 503)
    await admin.delete(one(profile_id), status=200)
    await own.get(PROFILE, 401)


async def test_the_application_is_named_by_the_query_or_the_token(
    api: Api, admin: Client, nobody: Client
) -> None:
    await api.store.registry.create_application("second")
    both = await api.client("profiles:read", "profiles:write", applications=("demo", "second"))
    own, profile_id = await born(nobody)

    await both.get(one(profile_id), 400)
    assert "demo" == (await both.get(f"{one(profile_id)}?client_id=demo")).body.client_id
    await both.get(f"{one(profile_id)}?client_id=second", 404)
    for client in (own, admin):
        await client.get(f"{one(profile_id)}?client_id=demo")
        await client.get(f"{one(profile_id)}?client_id=second", 403)
        await client.get(f"{one(profile_id)}?client_id=never", 403)


# --- hostile input


BAD_BODIES: list[tuple[Any, str]] = [
    (b"{", "not JSON"),
    (b"[]", "Expected `object`"),
    (b'"x"', "Expected `object`"),
    (b"\xff\xfe", ""),
    (b'{"nickname": "\xff"}', "UTF-8"),
    (b'{"nickname": "\\ud800"}', ""),
    (b"[" * 60_000, "Expected `object`"),
    (b'{"attributes":' + b"[" * 60_000, "Expected `object`"),
    ({"nickname": 1}, "Expected `str | null`"),
    ({"nickname": ["N"]}, "Expected `str | null`"),
    ({"nickname": "N" * 256}, "length <= 255"),
    ({"nickname": "a\0b"}, "NUL"),
    ({"nick": "N"}, "unknown field"),
    ({"id": P1}, "unknown field"),
    ({"access_token": "x"}, "unknown field"),
    ({"custom_id": ""}, "length >= 1"),
    ({"custom_id": "c" * 256}, "length <= 255"),
    ({"custom_id": "a\0b"}, "NUL"),
    ({"custom_id": 7}, "Expected `str"),
    ({"custom_data": "x" * 8193}, "length <= 8192"),
    ({"custom_data": "\0"}, "NUL"),
    ({"custom_data": {"a": 1}}, "Expected `str | null`"),
    ({"attributes": {}}, "Expected `array`"),
    ({"attributes": None}, "Expected `array`"),
    ({"attributes": [{"key": "k"}]}, "value"),
    ({"attributes": [{"key": "k", "value": 1}]}, "$.attributes[0].value"),
    ({"attributes": [{"key": "k", "value": None}]}, "$.attributes[0].value"),
    ({"attributes": [{"key": "k", "value": "v", "x": 1}]}, "unknown field"),
    ({"attributes": [{"key": "", "value": "v"}]}, "length >= 1"),
    ({"attributes": [{"key": "k" * 257, "value": "v"}]}, "length <= 256"),
    ({"attributes": [{"key": "a\0", "value": "v"}]}, "NUL"),
    ({"attributes": [{"key": "k", "value": "\0"}]}, "NUL"),
    ({"attributes": [{"key": "k", "value": "v" * 4097}]}, "at most 4,096 characters"),
    ({"attributes": [*listed(a="1", b="2"), *listed(a="1")]}, "given twice - at `$.attributes[2]`"),
    ({"attributes": listed(**{f"k{n}": "" for n in range(201)})}, "length <= 200"),
    (
        {"attributes": [{"key": f"k{n}", "value": "🙂" * 4096} for n in range(100)]},
        "1,048,576 bytes together",
    ),
]


@pytest.mark.parametrize(
    ("body", "sentence"), BAD_BODIES, ids=[str(n) for n in range(len(BAD_BODIES))]
)
async def test_what_does_not_fit_is_refused_with_a_sentence(
    api: Api, admin: Client, nobody: Client, body: Any, sentence: str
) -> None:
    own, profile_id = await born(nobody)
    before = (await admin.get(one(profile_id))).plain
    for client, method, path in (
        (admin, "POST", PROFILE),
        (nobody, "POST", PROFILE),
        (admin, "PATCH", one(profile_id)),
        (own, "PATCH", PROFILE),
    ):
        answer = await client.call(method, path, body)
        hopeless = client is not admin and "1,048,576" in sentence
        assert answer.status == 400 or (hopeless and answer.status in (403, 413)), answer
        assert sentence in answer.content.decode() or hopeless
    assert before == (await admin.get(one(profile_id))).plain
    [count] = await api.store.members.count_members(await demo_env(api), [0])
    assert 1 == count


async def test_a_change_needs_a_body(admin: Client, nobody: Client) -> None:
    own, profile_id = await born(nobody)

    for client, path in ((own, PROFILE), (admin, one(profile_id))):
        assert "required" in (await client.patch(path, None, 400)).body.detail
    assert (
        "Expected `str`"
        in (await admin.patch(one(profile_id), {"custom_id": None}, 400)).content.decode()
    )


async def test_bodies_have_a_limit(admin: Client, nobody: Client) -> None:
    own, _ = await born(nobody)
    large, huge = (b'{"nickname":"' + b"x" * size + b'"}' for size in (2**16, 2**23))

    for client, method, body, status in (
        (nobody, "POST", large, 413),
        (own, "POST", large, 413),
        (admin, "POST", large, 400),
        (own, "PATCH", large, 400),
        (admin, "POST", huge, 413),
        (own, "PATCH", huge, 413),
    ):
        assert status == (await client.call(method, PROFILE, body)).status
    assert (
        415 == (await nobody.call("POST", PROFILE, {}, headers={"Content-Encoding": "gzip"})).status
    )


async def test_the_token_of_a_profile_sends_no_more_than_it_may_give(nobody: Client) -> None:
    # Anybody gets one, and with it 8 MiB of attributes held the event loop for 0.2 s.
    own, profile_id = await born(nobody)
    most = {"nickname": "\U0001f642" * 255, "custom_data": "\U0001f642" * 8192}
    large = b'{"nickname":"' + b"x" * 2**17 + b'"}'

    for path in (PROFILE, one(profile_id)):
        assert 200 == (await own.call("PATCH", path, json.dumps(most))).status
        assert 413 == (await own.call("PATCH", path, large)).status


@pytest.mark.parametrize(
    "text", ["é🙂", "\r\n", '"\\', "{7}:groups", "-", "=", "%s", "<script>", "a" * 255, "\x7f\x01"]
)
async def test_every_other_text_is_kept_as_it_is(admin: Client, text: str) -> None:
    fields = {"nickname": text, "custom_data": text, "custom_id": text}
    _, profile_id = await born(admin, attributes=listed(**{text: text}), **fields)
    read = (await admin.get(one(profile_id))).plain

    assert fields | {"attributes": listed(**{text: text})} == {
        name: read[name] for name in (*fields, "attributes")
    }
    assert read == (await admin.patch(one(profile_id), read_back(read))).plain


def read_back(body: dict[str, Any]) -> dict[str, Any]:
    return {n: body[n] for n in ("nickname", "custom_data", "custom_id", "attributes")}


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_other_methods_are_405(admin: Client, method: str) -> None:
    assert 405 == (await admin.call(method, PROFILE)).status
    assert 405 == (await admin.call("POST", one(P1), {})).status


# --- two at once, and a store that fails


async def test_two_changes_at_once_are_never_mixed(admin: Client) -> None:
    _, profile_id = await born(admin)
    lists = [{f"{who}{n}": who for n in range(50)} for who in "ab"]

    for _ in range(20):
        done = await asyncio.gather(
            *(
                admin.patch(one(profile_id), {"attributes": listed(**each), "nickname": each_name})
                for each, each_name in zip(lists, "ab", strict=True)
            )
        )
        assert lists == [shown(answer) for answer in done]
        read = await admin.get(one(profile_id))
        assert (shown(read), read.body.nickname) in [(lists[0], "a"), (lists[1], "b")]


async def test_changes_that_meet_an_erasing_leave_nothing_behind(api: Api, admin: Client) -> None:
    env = await demo_env(api)
    for n in range(20):
        own, profile_id = await born(admin, custom_id=f"c{n}", attributes=listed(a="1"))
        *others, one_more, erased = await asyncio.gather(
            *(
                admin.call("PATCH", one(profile_id), {"attributes": listed(k=f"{k}")})
                for k in range(4)
            ),
            own.call("PATCH", PROFILE, {"nickname": "N"}),
            admin.call("PATCH", one(profile_id), {"custom_id": f"c{n}"}),
            own.call("GET", PROFILE),
            admin.call("DELETE", one(profile_id)),
            admin.call("DELETE", one(profile_id)),
        )
        assert {each.status for each in others} <= {200, 401, 404, 503}
        both = [each.body for each in (one_more, erased) if each.status == 200]
        assert (1, 1) == (
            sum(each.attributes for each in both),
            sum(each.identities for each in both),
        )
        await admin.get(one(profile_id), 404)
    [count] = await api.store.members.count_members(env, [0])
    assert 0 == count


async def test_of_many_that_create_one_custom_id_exactly_one_does(admin: Client) -> None:
    answers = await asyncio.gather(
        *(admin.call("POST", PROFILE, {"custom_id": "c", "nickname": str(n)}) for n in range(20))
    )

    assert [201] + [409] * 19 == sorted(answer.status for answer in answers)
    [made] = [answer.body for answer in answers if answer.status == 201]
    assert (await admin.get(one("c"))).body.nickname == made.nickname


async def test_a_full_store_is_read_and_emptied_and_says_so(
    api: Api, admin: Client, valkey: backings.Server
) -> None:
    own, profile_id = await born(admin, attributes=listed(a="1"))
    valkey.ask("CONFIG", "SET", "maxmemory", "1")
    try:
        for answer in (
            await admin.post(PROFILE, {}, 503),
            await admin.using(None).post(PROFILE, {}, 503),
            await own.patch(PROFILE, {"nickname": "N"}, 503),
            await admin.patch(one(profile_id), {"attributes": []}, 503),
        ):
            assert "1" == answer.headers["retry-after"]
        assert {"a": "1"} == shown(await own.get(PROFILE))
        assert 1 == (await admin.delete(one(profile_id), status=200)).body.attributes
    finally:
        valkey.ask("CONFIG", "SET", "maxmemory", "0")


async def test_each_operation_is_one_round_trip(
    api: Api, admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, profile_id = await born(admin)
    await own.get(PROFILE)
    sent = []
    call = api.store.connection.call

    async def counted(script: Any, *arguments: Any, **options: Any) -> Any:
        sent.append(script.name)
        return await call(script, *arguments, **options)

    monkeypatch.setattr(api.store.connection, "call", counted)
    for client, method, path in (
        (admin, "POST", PROFILE),
        (own, "GET", PROFILE),
        (own, "PATCH", PROFILE),
        (admin, "GET", one(profile_id)),
        (admin, "PATCH", one(profile_id)),
    ):
        await client.call(method, path, None if method == "GET" else {"nickname": "N"})

    get, update = "get_profile", "update_profile"
    assert ["create_profile", get, update, get, update] == sent


# --- what is inherited


AT_HOME = {"$address": "1 Main"}


async def define(
    api: Api, *shares: tuple[str, str], named: str = "household", source: str = "$address"
) -> None:
    """Make users with one address a group that shares these: name, and how."""
    new = NewDefinition(
        id=named,
        source_user_attribute=source,
        attributes=tuple(GroupAttribute(name, kind) for name, kind in shares),
    )
    await api.store.definitions.create_definition(await demo(api), new, "test")


async def test_what_one_writes_all_of_the_group_inherit_when_it_is_answered(
    api: Api, admin: Client
) -> None:
    await define(api, ("has_dog", "boolean_or"))
    john, at_first = await born(admin, attributes=listed(**AT_HOME, has_dog="true"))
    made = (await admin.post(PROFILE, {"attributes": listed(**AT_HOME)}, 201)).body
    jane = john.using(made.access_token)

    assert {**AT_HOME, "household:has_dog": "true"} == {a.key: a.value for a in made.attributes}
    for client in (john, jane):
        assert shown(await client.get(PROFILE))["household:has_dog"] == "true"
    changed = await admin.patch(one(at_first), {"attributes": listed(**AT_HOME, has_dog="no")})
    assert {**AT_HOME, "has_dog": "no", "household:has_dog": "false"} == shown(changed)
    assert {**AT_HOME, "household:has_dog": "false"} == shown(await jane.get(PROFILE))
    # Who moves away inherits of those who live there.
    away = await admin.patch(one(made.id), {"attributes": listed(**{"$address": "9 Oak"})})
    assert {"$address": "9 Oak", "household:has_dog": "false"} == shown(away)
    assert {} == shown(await admin.patch(one(made.id), {"attributes": []}))


async def test_dynamic_groups_have_followed_when_a_profile_is_written(
    api: Api, admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    gold = {"attribute": "tier", "condition": "is", "value": "gold"}
    body = {"name": "gold", "membership_type": "dynamic", "rule_tree": gold}
    gid = (await admin.post(f"{GROUPS}/", body, 201)).plain["id"]

    async def members() -> list[str]:
        return [
            each["id"] for each in (await admin.get(f"{GROUPS}/{gid}/members/")).plain["results"]
        ]

    _, profile_id = await born(admin, attributes=listed(tier="Gold"))
    assert [profile_id] == await members()
    await admin.patch(one(profile_id), {"attributes": listed(tier="silver")})
    assert [] == await members()
    await admin.patch(one(profile_id), {"attributes": listed(tier="gold", other="1")})
    assert [profile_id] == await members()

    async def gone(*_args: object, **_options: object) -> None:
        message = "gone"
        raise Unavailable(message)

    with monkeypatch.context() as patched:
        patched.setattr(api.store.settling, "settle", gone)
        await admin.patch(one(profile_id), {"attributes": []}, 503)
    assert {} == shown(await admin.get(one(profile_id)))
    # Whoever sends it again, if nobody was faster, has it followed.
    await admin.patch(one(profile_id), {"attributes": []})
    assert [] == await members()


async def test_who_erases_a_profile_is_told_of_its_groups_and_the_others_have_what_follows(
    api: Api, admin: Client
) -> None:
    await define(api, ("points", "sum"))
    _, goes = await born(admin, attributes=listed(**AT_HOME, points="7"))
    _, stays = await born(admin, attributes=listed(**AT_HOME, points="1"))
    assert shown(await admin.get(one(stays)))["household:points"] == "8"

    answer = await admin.delete(one(goes), status=200)

    assert (2, 1) == (answer.body.attributes, answer.body.instances)
    assert shown(await admin.get(one(stays)))["household:points"] == "1"


async def test_what_was_read_can_be_sent_back(api: Api, admin: Client) -> None:
    long = [f"{n}" + "x" * 511 for n in range(10)]
    before = {"household:has_dog": "mine", "household:tags": "mine", **AT_HOME, "tags": long[0]}
    _, profile_id = await born(admin, attributes=listed(**before))
    await define(api, ("has_dog", "boolean_or"), ("tags", "unique_list"))
    for tags in long[1:]:
        await born(admin, attributes=listed(**AT_HOME, tags=tags))
    env, id16 = await demo_env(api), uuid.UUID(profile_id).bytes
    await api.store.derivation.derive_profiles(env, [env.mixer.mix(id16)])
    read = await admin.get(one(profile_id))
    assert (json.dumps(long, separators=(",", ":")), "false") == (
        shown(read)["household:tags"],
        shown(read)["household:has_dog"],
    )
    kept = await api.store.records.get_profile(env, id16)

    written = await admin.patch(one(profile_id), read_back(read.plain) | {"custom_id": "c"})

    assert read.plain["attributes"] == written.plain["attributes"]
    again = await api.store.records.get_profile(env, id16)
    assert (kept.attributes, kept.seq) == (again.attributes, again.seq)
    counted = api.conductor.app.counters.snapshot().counters  # type: ignore[attr-defined]
    assert 2 == counted["belong_profile_dropped_attributes_total"]


async def test_nobody_writes_what_is_inherited(api: Api, admin: Client) -> None:
    await define(api, ("has_dog", "boolean_or"))
    forged = listed(**AT_HOME, **{"household:has_dog": "true", "household:cat": "true"})
    _, profile_id = await born(admin, attributes=forged)

    expected = {**AT_HOME, "household:has_dog": "false"}
    assert expected == shown(await admin.get(one(profile_id)))
    assert expected == shown(await admin.patch(one(profile_id), {"attributes": forged}))


async def test_a_definition_that_is_deleted_or_changed_elsewhere_shows_at_once(
    api: Api, admin: Client, valkey: backings.Server
) -> None:
    await define(api, ("points", "sum"), ("has_dog", "boolean_or"))
    own, _ = await born(admin, attributes=listed(**AT_HOME, points="7", has_dog="true"))
    inherits = {"household:points": "7", "household:has_dog": "true"}
    kept = {**AT_HOME, "points": "7", "has_dog": "true"}
    assert kept | inherits == shown(await own.get(PROFILE))
    elsewhere = await Store.open(valkey.url)
    try:
        application = await demo(api)
        changes = DefinitionChanges(attributes=(GroupAttribute("points", "min"),))
        await elsewhere.definitions.update_definition(application, "household", changes, "test")
        assert kept == shown(await own.get(PROFILE))
        await work(elsewhere, grace_us=0)
        assert kept | {"household:points": "7"} == shown(await own.get(PROFILE))
        await elsewhere.definitions.delete_definition(application, "household")
        assert kept == shown(await own.get(PROFILE))
        await work(elsewhere, grace_us=0)
    finally:
        await elsewhere.close()
    assert kept == shown(await own.get(PROFILE))


async def test_reserved_names_are_one_in_any_case(api: Api, admin: Client) -> None:
    await define(api, ("$City", "latest"), source="$Address")
    _, profile_id = await born(admin, attributes=listed(**{"$ADDRESS": "1", "$city": "x"}))
    for names in (("$address", "$Address"), ("$CITY", "$city")):
        twice = await admin.patch(
            one(profile_id), {"attributes": [{"key": name, "value": "1"} for name in names]}, 400
        )
        assert "given twice - at `$.attributes[1]`" in twice.body["attributes"][0]

    assert {"$address": "1", "$city": "x", "household:$City": "x"} == shown(
        await admin.get(one(profile_id))
    )


@pytest.mark.parametrize(
    ("value", "sentence"),
    [("v" * 4097, "a value has at most 4,096 characters"), ("\0", "NUL characters")],
)
async def test_a_colon_in_a_name_does_not_make_it_inherited(
    admin: Client, value: str, sentence: str
) -> None:
    _, profile_id = await born(admin, attributes=listed(**{"a:b": "v" * 4096}))
    for method, path in (("POST", PROFILE), ("PATCH", one(profile_id))):
        answer = await admin.call(method, path, {"attributes": listed(**{"a:b": value})})
        assert (400, True) == (answer.status, sentence in answer.body["attributes"][0])
    many = {"attributes": listed(**{f"a:{n}": "" for n in range(201)}), "custom_id": "c"}
    assert 400 == (await admin.call("PATCH", one(profile_id), many)).status
    assert (await admin.get(one(profile_id))).body.custom_id is None


async def test_what_cannot_follow_now_is_503_and_follows_later(
    api: Api, admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await define(api, ("points", "sum"))
    _, profile_id = await born(admin, attributes=listed(**AT_HOME, points="1"))
    _, other = await born(admin, attributes=listed(**AT_HOME))

    async def gone(*_arguments: Any, **_options: Any) -> None:
        raise Unavailable("gone")

    wanted = {"attributes": listed(**AT_HOME, points="2")}
    with monkeypatch.context() as patched:
        patched.setattr(api.store.derivation, "derive_profiles", gone)
        await admin.patch(one(profile_id), wanted, 503)
        assert shown(await admin.get(one(profile_id)))["points"] == "2"
    # Who repeats it has it follow, though nothing changes any more.
    assert shown(await admin.patch(one(profile_id), wanted))["household:points"] == "2"
    assert shown(await admin.get(one(other)))["household:points"] == "2"


async def test_a_profile_that_is_erased_while_it_is_followed_was_written_all_the_same(
    api: Api, admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await define(api, ("points", "sum"))
    _, profile_id = await born(admin, attributes=listed(a="1"))
    env, id16 = await demo_env(api), uuid.UUID(profile_id).bytes
    derive = api.store.derivation.derive_profiles

    async def erased_meanwhile(*arguments: Any, **options: Any) -> None:
        monkeypatch.undo()
        await api.store.profiles.erase_profile(env, id16)
        await derive(*arguments, **options)

    monkeypatch.setattr(api.store.derivation, "derive_profiles", erased_meanwhile)
    answer = await admin.patch(one(profile_id), {"attributes": listed(**AT_HOME)})

    assert AT_HOME == shown(answer)
    await admin.get(one(profile_id), 404)


async def test_members_of_a_household_who_write_at_once_all_inherit_the_same(
    api: Api, admin: Client
) -> None:
    await define(api, ("points", "sum"))
    people = [(await born(admin, attributes=listed(**AT_HOME)))[1] for _ in range(5)]
    for n in range(10):
        await asyncio.gather(
            *(
                admin.patch(one(each), {"attributes": listed(**AT_HOME, points=f"{n + k}")})
                for k, each in enumerate(people)
            )
        )
        total = str(sum(n + k for k in range(5)))
        for each in people:
            assert shown(await admin.get(one(each)))["household:points"] == total
