"""Ingest over HTTP: what is answered, what is then there, and what is refused without a trace."""

from __future__ import annotations

import json
import logging
import time
from base64 import b64encode
from typing import TYPE_CHECKING, Any

import pytest

from service import keys, scripts, store_ingest

if TYPE_CHECKING:
    from tests.client import Client

EVENTS, BULK, HISTORICAL = "/v2/events", "/v2/bulkevents", "/v2/bulkevents/historical"
JOHN = {"customerid": "john-1", "email": "john@example.com"}
JANE = {"customerid": "jane-1", "email": "jane@example.com"}
DAYS_AGO_MS = time.time_ns() // 1_000_000 - 80 * 3_600_000
HOUSEHOLD = {
    "id": "household",
    "source_user_attribute": "$address",
    "attributes": [{"id": "has_dog", "type": "boolean_or"}],
}


def batch(identities=None, **fields):
    return {"user_identities": identities or JOHN} | fields


def basic(key, secret):
    return {"Authorization": f"Basic {b64encode(f'{key}:{secret}'.encode()).decode()}"}


@pytest.fixture
async def uploader(api):
    """A client that names itself as the SDKs do."""
    credential, secret = await api.store.registry.create_credential(["demo"], ["events:write"])
    return Uploader(api.admin.using(None), basic(credential.id, secret))


class Uploader:
    def __init__(self, client: Client, headers: dict[str, str]) -> None:
        self.client, self.headers = client, headers

    async def post(self, path: str, body: object, status: int = 202) -> Any:
        answer = await self.client.post(path, body, status, headers=self.headers)
        if status == 202:
            assert not answer.content
        return answer


async def view(api, identities, environment="production"):
    """What the profile API shows of a user; None: there is none."""
    [(name, value)] = list(identities.items())[:1]
    answer = await api.admin.call(
        "POST",
        "/userprofile/v1/resolve/1/1/1?fields=user_attributes,user_identities",
        {
            "environment_type": environment,
            "identity": {"type": name.replace("customerid", "customer_id"), "value": value},
        },
    )
    assert answer.status in (200, 404), answer
    return None if answer.status == 404 else answer.plain


async def attributes(api, identities, environment="production"):
    seen = await view(api, identities, environment)
    return None if seen is None else seen["user_attributes"]


async def counted(api, name, result=None):
    """What /metrics says of a counter."""
    said = (await api.conductor.simulate_get("/metrics")).text
    label = "" if result is None else f'{{result="{result}"}}'
    found = [line.split()[1] for line in said.splitlines() if line.startswith(f"{name}{label} ")]
    return float(found[0]) if found else 0.0


async def nobody(api):
    [count] = await api.store.members.count_members(
        (await api.store.registry.application("demo")).production, [0]
    )
    return count == 0


async def test_a_batch_is_answered_202_with_nothing_and_is_there(api, uploader):
    sent = {
        "$Address": "123 Main St", "has_dog": True, "points": 12, "weight": 1.50, "tags": ["a", 1],
        "nothing": None, "ünï": "🙂",
    }  # fmt: skip
    answer = await uploader.post(EVENTS, batch(user_attributes=sent))
    assert "content-type" not in answer.headers or not answer.content
    seen = await view(api, JOHN)
    assert {
        "$address": "123 Main St", "has_dog": "true", "points": "12", "weight": "1.5",
        "tags": ["a", "1"], "nothing": None, "ünï": "🙂",
    } == seen["user_attributes"]  # fmt: skip
    assert {("customer_id", "john-1"), ("email", "john@example.com")} == {
        (each["type"], each["value"]) for each in seen["user_identities"]
    }
    assert isinstance(seen["mpid"], int)


async def test_the_profile_groups_face_shows_and_changes_the_same_attributes(api, uploader):
    await uploader.post(EVENTS, batch(user_attributes={"tier": "gold", "points": 12}))
    path = "/api/v1/profiles/john-1/?client_id=demo"
    shown = (await api.admin.get(path)).plain
    assert [{"key": "points", "value": "12"}, {"key": "tier", "value": "gold"}] == shown[
        "attributes"
    ]
    await api.admin.patch(path, {"attributes": [{"key": "tier", "value": "silver"}]})
    assert {"tier": "silver"} == await attributes(api, JOHN)
    await uploader.post(EVENTS, batch(user_attributes={"points": 13}))
    shown = (await api.admin.get(path)).plain
    assert [{"key": "points", "value": "13"}, {"key": "tier", "value": "silver"}] == shown[
        "attributes"
    ]


async def test_dynamic_groups_have_followed_when_a_batch_is_answered(api, uploader):
    gold = {"attribute": "tier", "condition": "is", "value": "gold"}
    body = {"name": "gold", "membership_type": "dynamic", "rule_tree": gold}
    await api.admin.post("/api/v1/applications/demo/profile-groups/", body, 201)

    async def members():
        [group] = (await api.admin.get("/v1/workspace/1/audiences")).plain
        return group["size"]

    await uploader.post(
        BULK, [batch(each, user_attributes={"tier": "GOLD"}) for each in (JOHN, JANE)]
    )
    assert 2 == await members()
    await uploader.post(EVENTS, batch(JANE, user_attributes={"tier": "silver"}))
    assert 1 == await members()
    # In development nobody is in any.
    await uploader.post(
        EVENTS, batch(JANE, user_attributes={"tier": "gold"}, environment="development")
    )
    await uploader.post(EVENTS, batch(JOHN, deleted_user_attributes=["tier"]))
    assert 0 == await members()


async def test_john_and_jane_inherit_what_either_has_when_the_request_is_answered(api, uploader):
    await api.admin.post("/platform/workspaces/1/groups", HOUSEHOLD)
    await uploader.post(
        BULK,
        [
            batch(JOHN, user_attributes={"$address": "123 Main St"}),
            batch(JANE, user_attributes={"$address": "123 Main St", "has_dog": True}),
            batch({"email": "bob@example.com"}, user_attributes={"$address": "9 Oak"}),
        ],
    )
    for each in (JOHN, JANE):
        assert "true" == (await attributes(api, each))["household:has_dog"]
    bob = {"email": "bob@example.com"}
    assert "false" == (await attributes(api, bob))["household:has_dog"]
    await uploader.post(EVENTS, batch(JANE, deleted_user_attributes=["$address"]))
    assert "false" == (await attributes(api, JOHN))["household:has_dog"]
    assert "household:has_dog" not in await attributes(api, JANE)


async def test_what_members_inherit_cannot_be_uploaded(api, uploader):
    await api.admin.post("/platform/workspaces/1/groups", HOUSEHOLD)
    sent = {"$address": "1", "household:has_dog": "true", "household:x": 1}
    await uploader.post(
        EVENTS, batch(user_attributes=sent, deleted_user_attributes=["household:y"])
    )
    assert {"$address": "1", "household:has_dog": "false"} == await attributes(api, JOHN)
    assert 2 == await counted(api, "belong_ingest_dropped_attributes_total")


async def test_the_environment_of_a_batch_is_its_own(api, uploader):
    await uploader.post(
        BULK,
        [
            batch(environment="development", user_attributes={"in": "development"}),
            batch(environment="unknown", user_attributes={"in": "unknown"}),
            batch(user_attributes={"x": 1}),
        ],
    )
    assert {"in": "unknown", "x": "1"} == await attributes(api, JOHN)
    assert {"in": "development"} == await attributes(api, JOHN, "development")


async def test_the_newest_write_wins_in_whatever_order_they_arrive(api, uploader):
    def at(minute, value):
        change = {"user_attribute_name": "a", "timestamp_unixtime_ms": DAYS_AGO_MS + minute}
        return batch(
            user_attributes={"a": value},
            events=[{"event_type": "user_attribute_change", "data": change}],
        )

    await uploader.post(EVENTS, at(2, "second"))
    await uploader.post(EVENTS, at(1, "first"))
    assert {"a": "second"} == await attributes(api, JOHN)
    await uploader.post(BULK, [at(4, "fourth"), at(3, "third")])
    assert {"a": "fourth"} == await attributes(api, JOHN)
    await uploader.post(HISTORICAL, [at(5, "fifth"), at(0, "zeroth")])
    assert {"a": "fifth"} == await attributes(api, JOHN)
    await uploader.post(EVENTS, batch(user_attributes={"a": "now"}))
    await uploader.post(HISTORICAL, [at(6, "sixth")])
    assert {"a": "now"} == await attributes(api, JOHN)


async def test_a_historical_batch_without_old_events_is_passed_over(api, uploader):
    def event(age_hours):
        at_ms = time.time_ns() // 1_000_000 - age_hours * 3_600_000
        return {"event_type": "custom_event", "data": {"timestamp_unixtime_ms": at_ms}}

    await uploader.post(
        HISTORICAL,
        [
            batch(user_attributes={"no events": 1}),
            batch(user_attributes={"too young": 1}, events=[event(71)]),
            batch(user_attributes={"old": 1}, events=[event(73)]),
        ],
    )
    assert {"old": "1"} == await attributes(api, JOHN)
    refused = await uploader.post(HISTORICAL, [batch(user_attributes={"a": 1})], 400)
    assert "A historical batch needs events" in refused.body.detail


async def test_a_request_that_comes_twice_is_done_once(api, uploader):
    sent = batch(source_request_id="r", user_attributes={"a": 1})
    await uploader.post(EVENTS, sent)
    await uploader.post(EVENTS, batch(user_attributes={"a": 2}))
    await uploader.post(EVENTS, sent)
    await uploader.post(BULK, [sent, batch(JANE, source_request_id="r"), sent])
    assert {"a": "2"} == await attributes(api, JOHN)
    assert 3 == await counted(api, "belong_ingest_batches_total", "accepted")
    assert 3 == await counted(api, "belong_ingest_batches_total", "duplicate")


async def test_the_requests_of_two_credentials_are_told_apart(api, uploader):
    sent = batch(source_request_id="r", user_attributes={"a": 1})
    await uploader.post(EVENTS, sent)
    await uploader.post(EVENTS, batch(user_attributes={"a": 2}))
    await api.admin.post(EVENTS, sent, 202)
    assert {"a": "1"} == await attributes(api, JOHN)


LONG = "x" * 257
BAD_BATCHES = {
    "nobody": {"user_attributes": {"a": 1}},
    "no identity that there is": {"user_identities": {"android_id": "1"}},
    "two customer ids": batch({"customerid": "a", "customer_id": "b"}),
    "an identity that is no text": batch({"email": 5}),
    "identities that are a list": batch([["email", "e"]]),
    "a long identity": batch({"email": LONG}),
    "an mpid of 65 bits": batch(mpid=2**63),
    "an mpid that is no number": batch(mpid="john"),
    "an environment that there is not": batch(environment="test"),
    "a nested object": batch(user_attributes={"a": {"b": 1}}),
    "a nested list": batch(user_attributes={"a": [["b"]]}),
    "an object in a list": batch(user_attributes={"a": [{"b": 1}]}),
    "a name of 257 characters": batch(user_attributes={LONG: 1}),
    "an empty name": batch(user_attributes={"": 1}),
    "a value of 4,097 characters": batch(user_attributes={"a": "x" * 4097}),
    "a list of 1,001": batch(user_attributes={"a": [1] * 1001}),
    "an entry of 513 characters": batch(user_attributes={"a": ["x" * 513]}),
    "101 attributes": batch(user_attributes={f"k{n}": n for n in range(101)}),
    "101 deletions": batch(deleted_user_attributes=[f"k{n}" for n in range(101)]),
    "deletions that are no list": batch(deleted_user_attributes="a"),
    "a deletion that is no text": batch(deleted_user_attributes=[1]),
    "attributes that are a list": batch(user_attributes=["a"]),
    "an event without a type": batch(events=[{"data": {}}]),
    "a change of no attribute": batch(events=[{"event_type": "user_attribute_change", "data": {}}]),
    "an event before 1970": batch(
        events=[
            {
                "event_type": "user_attribute_change",
                "data": {"user_attribute_name": "a", "timestamp_unixtime_ms": -1},
            }
        ]
    ),
    "a request id that is no text": batch(source_request_id=5),
    "a NUL": batch(user_attributes={"a": "\0"}),
    "no object": ["a"],
    "null": None,
}
BAD_NUMBERS = ["1e999999", "-1e400", "[1e999]"]
NO_JSON = {
    "nothing": b"",
    "blanks": b" \n",
    "half of it": b'{"mpid": 1',
    "NaN": b'{"mpid": 1, "user_attributes": {"a": NaN}}',
    "Infinity": b'{"mpid": 1, "user_attributes": {"a": -Infinity}}',
    "no UTF-8": b'{"mpid": 1, "ip": "\xff"}',
    "half a character": b'{"mpid": 1, "user_attributes": {"a": "\\ud800"}}',
    "a deep list": b'{"mpid": 1, "user_attributes": {"a": ' + b"[" * 100_000,
    "a comma too many": b'{"mpid": 1,}',
    "a number that is none": b'{"mpid": 1, "user_attributes": {"a": 01}}',
}


@pytest.mark.parametrize("name", BAD_BATCHES)
async def test_a_bad_batch_alone_is_400_and_in_a_bulk_the_others_are_done(api, uploader, name):
    bad = BAD_BATCHES[name]
    answer = await uploader.post(EVENTS, bad, 400)
    assert answer.body.detail
    assert answer.body.error_code == "BAD_REQUEST"
    assert await nobody(api)
    await uploader.post(BULK, [bad, batch(JANE, user_attributes={"a": 1}), bad])
    assert {"a": "1"} == await attributes(api, JANE)
    assert await attributes(api, JOHN) is None
    assert 3 == await counted(api, "belong_ingest_batches_total", "invalid")
    assert 1 == await counted(api, "belong_ingest_batches_total", "accepted")


@pytest.mark.parametrize("number", BAD_NUMBERS)
async def test_a_number_that_is_a_bomb_is_refused(api, uploader, number):
    bad = b'{"user_identities":{"email":"e"},"user_attributes":{"fine":1,"a":%b}}' % number.encode()
    answer = await uploader.post(EVENTS, bad, 400)
    assert "the number is too large - at `$.user_attributes.a`" == answer.body.detail
    await uploader.post(BULK, b'[%b,{"mpid":2}]' % bad)
    assert await attributes(api, {"email": "e"}) is None


@pytest.mark.parametrize("name", NO_JSON)
async def test_what_is_no_json_is_400_alone_and_in_a_bulk_as_a_whole(api, uploader, name):
    bad = NO_JSON[name]
    assert (await uploader.post(EVENTS, bad, 400)).body.detail
    assert (await uploader.post(BULK, b'[{"mpid":2},' + bad + b"]", 400)).body.detail
    assert await nobody(api)


@pytest.mark.parametrize("path", [BULK, HISTORICAL])
@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "A JSON body is required, and this one is empty."),
        ([], "A bulk has 1 to 100 batches, and this one has 0."),
        ([{"mpid": n} for n in range(101)], "A bulk has 1 to 100 batches, and this one has 101."),
        ({"mpid": 1}, "Expected `array`, got `object`"),
    ],
)
async def test_a_bulk_has_so_many_batches_and_no_more(api, uploader, path, body, sentence):
    assert sentence == (await uploader.post(path, body, 400)).body.detail
    assert await nobody(api)


async def test_a_bulk_of_which_nothing_fits_is_refused_and_says_why(api, uploader):
    sent = [batch(user_attributes={"a": {}}), {"user_attributes": {}}]
    answer = await uploader.post(BULK, sent, 400)
    assert (
        "2 of 2 batches do not fit. [0] a value is a text, a number, a truth value, null, or a "
        "list of those - at `$.user_attributes.a` [1] No user ID provided: a batch names its user "
        "by `mpid` or `user_identities`."
    ) == answer.body.detail
    assert await nobody(api)


async def test_what_is_passed_over_in_a_bulk_is_logged_without_its_values(api, uploader, caplog):
    secret = "x" * 5000
    with caplog.at_level(logging.WARNING, "service.events"):
        await uploader.post(BULK, [batch(), *[batch(user_attributes={"a": secret})] * 9])
    [said] = [record.getMessage() for record in caplog.records if record.name == "service.events"]
    assert said.startswith(
        "9 of 10 batches do not fit, and were passed over (application demo, req"
    )
    assert "[1] a value has at most 4,096 characters" in said
    assert "[5]" in said
    assert "[6]" not in said
    assert "xxx" not in said


async def test_a_request_or_a_batch_that_is_too_large_is_413(api, uploader):
    large = batch(ip="x" * 131_072)
    assert "PAYLOAD_TOO_LARGE" == (await uploader.post(EVENTS, large, 413)).body.error_code
    await uploader.post(BULK, [large, batch(JANE)])
    assert await attributes(api, JOHN) is None
    assert {} == await attributes(api, JANE)
    fits = json.dumps([batch(JANE, ip="x" * 1000)] * 90).encode()
    await uploader.post(BULK, fits + b" " * (262_144 - len(fits)))
    answer = await uploader.post(BULK, fits + b" " * (262_145 - len(fits)), 413)
    assert "The body may have 262144 bytes (256 KiB) at most." == answer.body.detail
    await uploader.post(EVENTS, b" " * 300_000, 413)


async def test_a_user_with_too_many_attributes_is_refused_alone_and_passed_over_in_a_bulk(
    api, uploader
):
    for part in "ab":
        many = {f"{part}{n}": n for n in range(100)}
        await uploader.post(EVENTS, batch(user_attributes=many))
    answer = await uploader.post(EVENTS, batch(user_attributes={"one more": 1}), 400)
    assert "The user would have more than 200 attributes." == answer.body.detail
    await uploader.post(BULK, [batch(user_attributes={"one more": 1}), batch(JANE)])
    assert 200 == len(await attributes(api, JOHN))
    assert 2 == await counted(api, "belong_ingest_batches_total", "invalid")
    await uploader.post(BULK, [batch(user_attributes={"one more": 1})], 400)


async def test_whoever_does_not_name_itself_is_401_and_whoever_does_wrongly_403(api, uploader):
    credential, secret = await api.store.registry.create_credential(["demo"], ["members:read"])
    good = uploader.headers["Authorization"]
    for path in (EVENTS, BULK, HISTORICAL):
        body = batch() if path == EVENTS else [batch()]
        nobody_said = await api.admin.using(None).post(path, body, 401)
        assert "UNAUTHORIZED" == nobody_said.body.error_code
        for wrong in (
            "Basic Og==",
            f"{good[:-6]}AAAA==",
            basic(credential.id, secret)["Authorization"],
        ):
            headers = {"Authorization": wrong}
            refused = await api.admin.using(None).post(path, body, 403, headers=headers)
            assert "FORBIDDEN" == refused.body.error_code
    assert await nobody(api)
    token = await api.client("events:write")
    await token.post(EVENTS, batch(user_attributes={"a": 1}), 202)
    assert {"a": "1"} == await attributes(api, JOHN)


@pytest.mark.parametrize(
    "path", ["/v2/events", "/events", "/v2//events", "/v2/events/", "//events"]
)
async def test_a_batch_reaches_us_by_whatever_the_sdk_makes_of_its_host(api, uploader, path):
    await uploader.post(path, batch(user_attributes={"a": 1}))
    assert {"a": "1"} == await attributes(api, JOHN)


@pytest.mark.parametrize("path", ["/bulkevents", "/v2//bulkevents", "/v2/bulkevents/"])
async def test_a_bulk_does_so_too(api, uploader, path):
    await uploader.post(path, [batch(user_attributes={"a": 1})])
    assert {"a": "1"} == await attributes(api, JOHN)


async def test_what_else_a_request_says_is_ignored(api, uploader):
    sent = batch(user_attributes={"a": 1}, unknown={"x": [1]}, api_key="k", schema_version=2)
    await uploader.client.post(
        f"{EVENTS}?debug=1",
        sent,
        202,
        headers=uploader.headers | {"Content-Type": "application/x-www-form-urlencoded"},
    )
    assert {"a": "1"} == await attributes(api, JOHN)


async def test_a_limited_application_tells_how_much_of_it_is_used(api, uploader):
    await api.store.registry.update_application("demo", requests_per_second=10)
    answer = await uploader.post(EVENTS, batch())
    assert 0 <= int(answer.headers["x-mp-rate-limit-percentage-used"]) <= 100
    while answer.status == 202:
        answer = await uploader.client.call("POST", EVENTS, batch(), headers=uploader.headers)
    assert 429 == answer.status
    assert "workspace" == answer.headers["x-mp-rate-limit-exceeded"]
    assert int(answer.headers["retry-after"]) >= 1


async def test_a_user_who_is_being_erased_is_503_and_may_come_again(api, uploader, monkeypatch):
    monkeypatch.setattr(store_ingest, "PAUSE_SECONDS", 0.0)
    await uploader.post(EVENTS, batch(user_attributes={"a": 1}))
    env = (await api.store.registry.application("demo")).production
    [found] = await api.store.profiles.resolve_identities(
        env, "customer_id", ["john-1"], create=False
    )
    mixed = env.mixer.mix(found)
    tag = env.home(mixed)
    await api.store.connection.call(
        scripts.load("begin_erase"),
        [keys.key(tag, "erasing"), keys.of_profile(tag, "profile", mixed), keys.none(tag)],
        [mixed, time.time_ns() // 1000],
    )
    answer = await uploader.post(EVENTS, batch(user_attributes={"b": 1}), 503)
    assert ("SERVICE_UNAVAILABLE", "1") == (answer.body.error_code, answer.headers["retry-after"])
    await api.store.profiles.erase_profile(env, found)
    await uploader.post(EVENTS, batch(user_attributes={"b": 1}))
    assert {"b": "1"} == await attributes(api, JOHN)
