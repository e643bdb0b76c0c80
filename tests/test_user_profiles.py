"""A user's profile as the Group Identity face shows it: who is found, and what of it is shown."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from service import ids
from service.grouping import GroupAttribute
from service.store_definitions import NewDefinition
from service.store_records import NewProfile, ProfileChanges
from service.user_profiles import FIELDS, NAMES, UserProfileBody
from service.worker import work

if TYPE_CHECKING:
    from service.environment import Environment
    from tests.client import Answer, Api, Client

MPID = -7346244611012968789
ALL = ",".join(FIELDS)
RESOLVE = "/userprofile/v1/resolve/1/2/1"
V1 = "/api/v1"


def by_mpid(mpid: object = MPID, fields: str = ALL, more: str = "") -> str:
    return f"/userprofile/v1/1/2/1/{mpid}?fields={fields}{more}"


def naming(kind: str | None, value: str | None, **more: Any) -> dict[str, Any]:
    return {"identity": {"type": kind, "value": value}, **more}


async def env_of(api: Api, name: str = "production") -> Environment:
    application = await api.store.registry.application("demo")
    assert application is not None
    return application.environments[name]


async def user(
    api: Api, *identities: tuple[str, str], environment: str = "production", **attributes: Any
) -> bytes:
    """Make a user with an mpid, other identities and attributes (JSON)."""
    env = await env_of(api, environment)
    id16 = (await api.store.records.create_profile(env, NewProfile(attributes=attributes))).id
    for kind, value in identities or (("mpid", str(MPID)), ("customer_id", "john")):
        await api.store.profiles.add_identity(env, id16, kind, value)
    return id16


def shown(answer: Answer) -> UserProfileBody:
    return msgspec.json.decode(answer.content, type=UserProfileBody)


async def attributes(client: Client, path: str = "") -> dict[str, Any]:
    answer = await client.get(path or by_mpid(fields="user_attributes"))
    found: dict[str, Any] = answer.plain["user_attributes"]
    return found


@pytest.fixture
async def reader(api: Api) -> Client:
    """Somebody who may read profiles."""
    return await api.client("profiles:read")


async def test_a_user_is_read_by_mpid_with_all_parts(api: Api, reader: Client) -> None:
    env = await env_of(api)
    id16 = await user(api, ("mpid", str(MPID)), ("email", "j@example.org"), has_dog=b'"true"')
    profile = await api.store.records.get_profile(env, id16)
    assert profile.created_at_us is not None

    answer = await reader.get(by_mpid())

    assert {
        "mpid": MPID,
        "created_timestamp_ms": profile.created_at_us // 1000,
        "last_stored_timestamp_ms": profile.seq // 1000,
        "is_opted_out": False,
        "limit_ad_tracking": None,
        "device_identities": [],
        "user_identities": [{"type": "email", "encoding": "none", "value": "j@example.org"}],
        "account_userattributes": None,
        "user_attributes": {"has_dog": "true"},
        "audience_memberships": [],
        "attribution": None,
    } == answer.plain
    assert b'"mpid":%d' % MPID in answer.content
    assert shown(answer).mpid == MPID


@pytest.mark.parametrize("mpid", [0, 1, 2**53 + 1, 2**63 - 1, -(2**63)])
async def test_any_mpid_of_64_bits_is_a_number_that_loses_nothing(
    api: Api, reader: Client, mpid: int
) -> None:
    await user(api, ("mpid", str(mpid)))

    assert mpid == (await reader.get(by_mpid(mpid))).plain["mpid"]


async def test_post_by_mpid_and_an_identity_show_the_same(api: Api, reader: Client) -> None:
    await user(api)
    read = (await reader.get(by_mpid())).plain

    for body in (None, b"", b" ", {}, {"environment_type": "production"}, {"unknown": 1}):
        assert read == (await reader.post(by_mpid(), body)).plain
    for body in (
        naming("customer_id", "john"),
        naming("customerid", "john"),
        naming("customer_id", "john", environment_type="production", unknown=1),
    ):
        assert read == (await reader.post(f"{RESOLVE}?fields={ALL}", body)).plain


async def test_organisation_and_account_are_read_past(api: Api, reader: Client) -> None:
    await user(api)
    read = (await reader.get(by_mpid())).plain

    for place in ("0/0", "x/y", "1/%2F", "-1/%F0%9F%90%95"):
        assert read == (await reader.get(f"/userprofile/v1/{place}/1/{MPID}/?fields={ALL}")).plain


async def test_only_what_is_asked_for_is_shown(api: Api, reader: Client) -> None:
    await user(api)
    always = {
        "mpid",
        "created_timestamp_ms",
        "last_stored_timestamp_ms",
        "is_opted_out",
        "limit_ad_tracking",
        "account_userattributes",
    }
    for field in FIELDS:
        assert always | {field} == set((await reader.get(by_mpid(fields=field))).plain)
    two = "user_attributes,%20user_identities,"
    assert always | {"user_attributes", "user_identities"} == set(
        (await reader.get(by_mpid(fields=two, more="&unknown=1"))).plain
    )


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("", "`fields` is required"),
        ("?fields=", "`fields` is required"),
        ("?fields=%20,", "`fields` is required"),
        ("?fields=user_attributes,ltv", "'ltv' is no field"),
        (f"?fields={'x' * 5000}", "is no field"),
        ("?fields=null", "'null' is no field"),
        ("?fields=user_attributes&fields=attribution", "more than once"),
        (f"?fields={ALL}&environment_type=staging", "environment_type"),
        (f"?fields={ALL}&environment_type=null", "environment_type"),
        ("?fields=%FF", "UTF-8"),
    ],
)
async def test_a_query_that_says_nothing_is_refused(
    api: Api, reader: Client, query: str, sentence: str
) -> None:
    await user(api)
    for answer in (
        await reader.get(f"/userprofile/v1/1/2/1/{MPID}{query}", 400),
        await reader.post(f"/userprofile/v1/1/2/1/{MPID}{query}", None, 400),
        await reader.post(f"{RESOLVE}{query}", naming("customer_id", "john"), 400),
    ):
        assert sentence in answer.body.detail
        assert answer.body.error_code == "BAD_REQUEST"


@pytest.mark.parametrize(
    "mpid", ["x", "1.0", "01", "-0", "+1", "1e3", "%201", "9223372036854775808", "9" * 5000, "%00"]
)
async def test_an_mpid_that_is_none_is_no_user_id(reader: Client, mpid: str) -> None:
    for method in ("GET", "POST"):
        answer = await reader.call(method, by_mpid(mpid), status=400)
        assert answer.body.detail.startswith("No user ID provided")


@pytest.mark.parametrize(
    "body",
    [
        None,
        b" ",
        {},
        {"identity": None},
        {"identity": {}},
        {"identity": {"type": "customer_id"}},
        {"identity": {"value": "john"}},
        naming("customer_id", ""),
        naming("", "john"),
        naming(None, None),
    ],
)
async def test_no_identity_is_no_user_id(reader: Client, body: object) -> None:
    answer = await reader.post(f"{RESOLVE}?fields={ALL}", body, 400)

    assert answer.body.detail.startswith("No user ID provided")


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"{", 400, "not JSON"),
        (b"[]", 400, "Expected `object`"),
        (b"NaN", 400, "not JSON"),
        (b"[" * 60_000, 400, ""),
        (b"\xff", 400, ""),
        ({"identity": "john"}, 400, "Expected `object"),
        ({"identity": {"type": "customer_id", "value": 7}}, 400, "Expected `str"),
        (naming("customer_id", "john", environment_type="staging"), 400, "Invalid enum value"),
        (naming("customer_id", "john", environment_type=None), 400, ""),
        (naming("passport", "john"), 400, "no such type"),
        (naming("mpid", "7"), 400, "no such type"),
        (naming("customer_id", "x" * 70_000), 413, "64 KiB"),
    ],
)
async def test_a_body_that_does_not_fit_is_refused_with_a_sentence(
    api: Api, reader: Client, body: object, status: int, sentence: str
) -> None:
    await user(api)

    answer = await reader.post(f"{RESOLVE}?fields={ALL}", body, status)

    assert sentence in answer.body.detail


async def test_whom_nobody_knows_is_404(api: Api, reader: Client) -> None:
    await user(api)
    for answer in (
        await reader.get(by_mpid(7), 404),
        await reader.post(by_mpid(7), None, 404),
        await reader.post(f"{RESOLVE}?fields={ALL}", naming("customer_id", "jane"), 404),
        await reader.post(f"{RESOLVE}?fields={ALL}", naming("email", "john"), 404),
        await reader.post(f"{RESOLVE}?fields={ALL}", naming("customer_id", "\0"), 404),
    ):
        assert (404, "NOT_FOUND") == (answer.plain["statusCode"], answer.body.error_code)
        assert "no such user" in answer.body.detail
    await reader.call("GET", RESOLVE, status=405)
    await reader.call("DELETE", by_mpid(), status=405)


async def test_environments_are_apart(api: Api, reader: Client) -> None:
    await user(api, has_dog=b'"true"')
    await user(api, environment="development", has_dog=b'"false"')
    development = "development"
    path = f"{RESOLVE}?fields=user_attributes"
    john = naming("customer_id", "john")

    for expected, answer in (
        ("true", await reader.get(by_mpid())),
        ("true", await reader.post(path, john)),
        ("true", await reader.post(f"{path}&environment_type={development}", {
            **john, "environment_type": "production"
        })),
        ("false", await reader.get(by_mpid(more=f"&environment_type={development}"))),
        ("false", await reader.post(by_mpid(), {"environment_type": development})),
        ("false", await reader.post(f"{path}&environment_type={development}", john)),
        ("false", await reader.post(path, {**john, "environment_type": development})),
    ):  # fmt: skip
        assert {"has_dog": expected} == answer.plain["user_attributes"]


async def test_identities_of_every_type_find_the_user_and_are_listed(
    api: Api, reader: Client
) -> None:
    kinds = [(kind, f"value of {kind}") for kind in NAMES]
    await user(api, ("mpid", str(MPID)), *kinds)
    listed = (await reader.get(by_mpid(fields="user_identities"))).plain["user_identities"]

    assert {(NAMES[kind], value) for kind, value in kinds} == {
        (each["type"], each["value"]) for each in listed
    }
    assert {"facebook_custom_audience_id", "other_id_2", "customer_id"} < {
        each["type"] for each in listed
    }
    for each in listed:
        body = naming(each["type"], each["value"])
        answer = await reader.post(f"{RESOLVE}?fields=user_identities", body)
        assert MPID == answer.plain["mpid"]


async def test_scalars_are_texts_and_lists_are_lists_of_texts(api: Api, reader: Client) -> None:
    await user(
        api,
        text=b'"a"',
        empty=b'""',
        number=b"12",
        precise=b"1.0",
        huge=b"123456789012345678901234567890",
        yes=b"true",
        tag=b"null",
        some=b'["b","a"]',
        none=b"[]",
        quoted=b'"\\"\\u00e9\xf0\x9f\x90\x95"',
    )
    assert {
        "text": "a",
        "empty": "",
        "number": "12",
        "precise": "1.0",
        "huge": "123456789012345678901234567890",
        "yes": "true",
        "tag": None,
        "some": ["b", "a"],
        "none": [],
        "quoted": '"é🐕',
    } == await attributes(reader)


async def test_both_faces_show_and_change_the_same(api: Api, admin: Client, reader: Client) -> None:
    kept: dict[str, Any] = {"$Address": b'"9 Oak"', "points": b"12"}
    id16 = await user(api, **kept)
    path = f"{V1}/profiles/{ids.text(id16)}/"

    assert {"$address": "9 Oak", "points": "12"} == await attributes(reader)
    sent = [{"key": "$ADDRESS", "value": "1 Main"}, {"key": "tags", "value": '["a"]'}]
    answer = await admin.patch(path, {"attributes": sent})

    assert {"$address": "1 Main", "tags": '["a"]'} == await attributes(reader)
    assert {"$address", "tags"} == {each.key for each in answer.body.attributes}


async def test_a_user_without_an_mpid_has_none(api: Api, reader: Client) -> None:
    await user(api, ("customer_id", "john"))

    body = naming("customer_id", "john")
    assert (await reader.post(f"{RESOLVE}?fields={ALL}", body)).plain["mpid"] is None


async def test_a_user_who_is_being_erased_is_503_and_then_404(api: Api, reader: Client) -> None:
    env, id16 = await env_of(api), await user(api)
    key = env.home(env.mixer.mix(id16)) + b":erasing"
    await api.store.connection.command(key, "SADD", key, env.mixer.mix(id16))

    for answer in (
        await reader.get(by_mpid(), 503),
        await reader.post(f"{RESOLVE}?fields={ALL}", naming("customer_id", "john"), 503),
    ):
        assert ("1", "SERVICE_UNAVAILABLE") == (
            answer.headers["retry-after"],
            answer.body.error_code,
        )
    await api.store.profiles.finish_erasures(env)
    await reader.get(by_mpid(), 404)


async def test_only_profiles_read_of_the_workspace_reads(api: Api, reader: Client) -> None:
    await api.store.registry.create_application("second", workspace_id=4711)
    id16 = await user(api)
    env = await env_of(api)
    await api.store.records.update_profile(env, id16, ProfileChanges(nickname="N"))
    resolve = naming("customer_id", "john")

    for client, status in (
        (reader.using(None), 401),
        (reader.using("x"), 401),
        (await api.client("profiles:write", "definitions:read", "events:write"), 403),
        (await api.client("admin", applications=("second",)), 403),
    ):
        await client.get(by_mpid(), status)
        await client.post(by_mpid(), None, status)
        await client.post(f"{RESOLVE}?fields={ALL}", resolve, status)
    for workspace, status in (("4711", 403), ("99", 403), ("x", 404)):
        await reader.get(f"/userprofile/v1/1/2/{workspace}/{MPID}?fields={ALL}", status)
    born = (await api.admin.post(f"{V1}/applications/demo/profile/", {}, 201)).body
    assert uuid.UUID(born.id)
    await reader.using(born.access_token).get(by_mpid(), 403)


async def test_what_is_inherited_is_shown_in_both_environments_apart(
    api: Api, reader: Client
) -> None:
    application = await api.store.registry.application("demo")
    assert application is not None
    shares = (("has_dog", "boolean_or"), ("tags", "unique_list"), ("nobody", "latest"))
    definition = NewDefinition(
        id="household",
        source_user_attribute="$address",
        attributes=tuple(GroupAttribute(name, kind) for name, kind in shares),
    )
    await api.store.definitions.create_definition(application, definition, "test")
    home: dict[str, Any] = {"$address": b'"1 Main"'}
    for environment in ("production", "development"):
        env = application.environments[environment]
        people = [
            await user(api, environment=environment, has_dog=b'"%d"' % n, tags=b'"b"', **home)
            if not n
            else (await api.store.records.create_profile(env, NewProfile(attributes=home))).id
            for n in range(2)
        ]
        await api.store.derivation.derive_profiles(env, [env.mixer.mix(each) for each in people])
    path = f"{RESOLVE}?fields=user_attributes"
    for place in ("production", "development"):
        body = naming("customer_id", "john", environment_type=place)
        assert {
            "$address": "1 Main",
            "has_dog": "0",
            "household:has_dog": "false",
            "household:tags": ["b"],
            "tags": "b",
        } == (await reader.post(path, body)).plain["user_attributes"]
    await api.store.definitions.delete_definition(application, "household")
    assert {"$address", "has_dog", "tags"} == set(await attributes(reader))
    await work(api.store, grace_us=0)
