"""Batches as SDKs upload them: what is read out of them, and what is refused."""

from __future__ import annotations

import json

import msgspec
import pytest

from service.batches import (
    BATCH_BYTES,
    HIERARCHY,
    KINDS,
    Change,
    Identity,
    cut_bulk,
    read_batch,
    value_of,
)
from service.errors import Invalid, TooLarge
from service.keys import IDENTITY_CODES

NOW_US = 1_700_000_000_000_000
HOUR_MS = 3_600_000
DAYS_AGO_MS = NOW_US // 1000 - 73 * HOUR_MS


def read(historical_at_us=None, **fields):
    batch = {"user_identities": {"customer_id": "c"}} | fields
    return read_batch(json.dumps(batch).encode(), historical_at_us=historical_at_us)


def changes(**fields):
    return {each.name: each.value for each in read(**fields).changes}


def attribute_change(name, at_ms=None, **data):
    times = {} if at_ms is None else {"timestamp_unixtime_ms": at_ms}
    return {
        "event_type": "user_attribute_change",
        "data": {"user_attribute_name": name} | times | data,
    }


def test_a_batch_of_the_python_sdk_is_read_whole():
    update = read_batch(
        b'{"events": [{"data": {"timestamp_unixtime_ms": 1700000000000, "source_message_id": "1", '
        b'"user_attribute_name": "$address", "new": "123 Main St", "deleted": false, '
        b'"is_new_attribute": true}, "event_type": "user_attribute_change"}, {"data": '
        b'{"timestamp_unixtime_ms": 1700000000001, "user_attribute_name": "has_dog", "old": "true",'
        b' "deleted": true, "is_new_attribute": false}, "event_type": "user_attribute_change"}, '
        b'{"data": {"custom_attributes": {"k": "v", "n": 3}, "custom_event_type": "other", '
        b'"event_name": "Attributes Updated"}, "event_type": "custom_event"}], '
        b'"source_request_id": "req-1", "environment": "development", "ip": "127.0.0.1", '
        b'"user_attributes": {"$address": "123 Main St"}, "deleted_user_attributes": ["has_dog"], '
        b'"user_identities": {"customerid": "john-1", "email": "john@example.com"}, '
        b'"integration_attributes": {"123": {"k": "v"}}, "mpid": -7346244611012968789, '
        b'"context": {"data_plan": {"plan_id": "plan_1", "plan_version": 2}}}'
    )
    assert "development" == update.environment
    assert -7346244611012968789 == update.mpid
    assert (("customer_id", "john-1"), ("email", "john@example.com")) == update.identities
    assert "req-1" == update.request_id
    assert (
        Change("has_dog", None, 1_700_000_000_001_000),
        Change("$address", b'"123 Main St"', 1_700_000_000_000_000),
    ) == update.changes


def test_every_member_may_be_missing_or_null_but_for_what_names_the_user():
    nothing = dict.fromkeys(
        [
            "environment", "mpid", "user_attributes", "deleted_user_attributes", "events",
            "source_request_id",
        ]
    )  # fmt: skip
    update = read(**nothing)
    assert read() == update
    assert ("production", None, (), None) == (
        update.environment,
        update.mpid,
        update.changes,
        update.request_id,
    )


@pytest.mark.parametrize(
    ("given", "environment"),
    [
        (None, "production"),
        ("production", "production"),
        ("unknown", "production"),
        ("development", "development"),
    ],
)
def test_environments(given, environment):
    assert environment == read(environment=given).environment


@pytest.mark.parametrize("given", ["test", "", "Production"])
def test_another_environment_is_refused(given):
    with pytest.raises(Invalid, match=r"`production` or `development` - at `\$\.environment`"):
        read(environment=given)


@pytest.mark.parametrize(
    ("given", "mpid"),
    [
        (0, 0),
        (1, 1),
        (-(2**63), -(2**63)),
        (2**63 - 1, 2**63 - 1),
        ("9223372036854775807", 2**63 - 1),
        ("-5", -5),
    ],
)
def test_an_mpid_is_a_number_of_64_bits_or_its_text(given, mpid):
    assert mpid == read(mpid=given).mpid


@pytest.mark.parametrize(
    "given", [2**63, -(2**63) - 1, 10**400, "", "x", "1.0", "-", "--1", "+1", "٣", "9" * 30, " 1"]
)
def test_another_number_is_no_mpid(given):
    with pytest.raises(Invalid, match=r"signed integer of 64 bits - at `\$\.mpid`"):
        read(mpid=given)


@pytest.mark.parametrize("given", [1.5, True, [], {}])
def test_what_is_no_number_at_all_is_no_mpid(given):
    with pytest.raises(Invalid, match=r"\$\.mpid"):
        read(mpid=given)


def test_identities_come_in_the_documented_order():
    given = {name: f"v {KINDS[name]}" for name in sorted(KINDS)}
    found = [each.kind for each in read(user_identities=given).identities]
    assert list(HIERARCHY) == found[: len(HIERARCHY)]
    assert set(IDENTITY_CODES) - {"mpid"} == set(found)
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("customerid", "customer_id"),
        ("facebook_custom_audience_id", "facebookcustomaudienceid"),
        ("other_id_2", "other2"),
        ("other_id_10", "other10"),
        ("mobile_number", "mobile_number"),
    ],
)
def test_identities_have_the_names_of_the_documents_and_of_the_sdks(name, kind):
    assert (Identity(kind, "x"),) == read(user_identities={name: "x"}).identities


def test_both_names_of_the_customer_id_may_be_given_if_they_say_the_same():
    both = {"customerid": "c", "customer_id": "c"}
    assert (Identity("customer_id", "c"),) == read(user_identities=both).identities
    with pytest.raises(Invalid, match=r"`customer_id` is given twice, and not alike"):
        read(user_identities={"customerid": "c", "customer_id": "d"})


def test_identities_of_no_known_type_and_empty_ones_name_nobody():
    given = {"email": "e", "android_id": "a", "mpid": "5", "yahoo": "", "google": None}
    assert (Identity("email", "e"),) == read(user_identities=given).identities


@pytest.mark.parametrize("given", [None, {}, {"email": ""}, {"android_id": "a"}])
def test_a_batch_that_names_nobody_is_refused(given):
    with pytest.raises(Invalid, match="No user ID provided"):
        read(user_identities=given)
    assert 7 == read(user_identities=given, mpid=7).mpid


@pytest.mark.parametrize("value", ["x" * 256, "a\0b"])
def test_an_identity_that_is_too_long_or_has_a_nul_is_refused(value):
    with pytest.raises(Invalid, match=r"at most 255 characters and no NUL .*identities\.email"):
        read(user_identities={"email": value})
    assert read(user_identities={"email": "é" * 255})


@pytest.mark.parametrize(
    ("json_value", "stored"),
    [
        ('"a text"', b'"a text"'),
        ('""', b'""'),
        ('"\\u0041\\/\\n"', b'"A/\\n"'),
        ('"é🙂\\ud83d\\ude42"', '"é🙂🙂"'.encode()),
        ("true", b'"true"'),
        ("false", b'"false"'),
        ("12", b'"12"'),
        ("-0", b'"-0"'),
        ("1.0", b'"1.0"'),
        ("1.50", b'"1.50"'),
        ("123456789012345678901234567890", b'"123456789012345678901234567890"'),
        ("1e3", b'"1000.0"'),
        ("1E-7", b'"0.0000001"'),
        ("1e308", b'"1' + b"0" * 308 + b'"'),
        ("null", b"null"),
        ("[]", b"[]"),
        ('["a", 1, 1.0, true, null, "\\u0042"]', b'["a","1","1.0","true","","B"]'),
        (" 12 ", b'"12"'),
    ],
)
def test_every_value_becomes_a_text_null_or_a_list_of_texts(json_value, stored):
    body = b'{"mpid":1,"user_attributes":{"k": %b}}' % json_value.encode()
    [change] = read_batch(body).changes
    assert Change("k", stored, None) == change


@pytest.mark.parametrize(
    ("json_value", "sentence"),
    [
        ("{}", "a text, a number, a truth value, null, or a list of those"),
        ('{"a": {"b": 1}}', "a text, a number, a truth value, null, or a list of those"),
        ("[[]]", "a text, a number, a truth value, null, or a list of those"),
        ('["a", {}]', "a text, a number, a truth value, null, or a list of those"),
        ("1e999999", "the number is too large"),
        ("[-1e400]", "the number is too large"),
        ('"' + "é" * 4097 + '"', "a value has at most 4,096 characters, and this one 4,097"),
        ("1" * 4097, "a value has at most 4,096 characters"),
        ("[" + ",".join(["1"] * 1001) + "]", "at most 1,000 entries, and this one 1,001"),
        ('["' + "x" * 513 + '"]', "an entry of a list has at most 512 characters"),
        ('"a\\u0000b"', "NUL characters are not allowed"),
    ],
)  # fmt: skip
def test_what_no_attribute_may_be_is_refused_with_a_sentence(json_value, sentence):
    body = b'{"mpid":1,"user_attributes":{"k": %b}}' % json_value.encode()
    with pytest.raises(Invalid, match=sentence) as refused:
        read_batch(body)
    assert str(refused.value).endswith("- at `$.user_attributes.k`")


def test_the_longest_values_are_taken():
    assert b'"' + "é".encode() * 4096 + b'"' == value_of(b'"' + "é".encode() * 4096 + b'"')
    longest = json.dumps(["x" * 120] * 1000).encode()
    assert 1000 == len(msgspec.json.decode(value_of(longest)))
    assert value_of(json.dumps(["y" * 512]).encode())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"5",
        b'{"mpid":1,"user_attributes":{"k":NaN}}',
        b'{"mpid":1,"user_attributes":{"k":Infinity}}',
        b'{"mpid":1,"user_attributes":{"k":01}}',
        b'{"mpid":1,"user_attributes":{"k":"\x01"}}',
        b'{"mpid":1,"user_attributes":{"k":"\\ud800"}}',
        b'{"mpid":1,"user_attributes":{"\xff":1}}',
        b'{"mpid":1,"user_attributes":[]}',
        b'{"mpid":1,"user_attributes":"k"}',
        b'{"mpid":1,"user_attributes":{"k":' + b"[" * 60_000,
        b'{"mpid":1,"deleted_user_attributes":{}}',
        b'{"mpid":1,"deleted_user_attributes":[1]}',
        b'{"mpid":1,"user_identities":[]}',
        b'{"mpid":1,"user_identities":{"email":5}}',
        b'{"mpid":1,"environment":5}',
        b'{"mpid":1,"source_request_id":5}',
        b'{"mpid":1,"events":{}}',
        b'{"mpid":1,"events":[5]}',
        b'{"mpid":1,"events":[{"event_type":"custom_event","data":[]}]}',
    ],
)
def test_what_is_no_batch_is_refused(body):
    with pytest.raises(Invalid):
        read_batch(body)


def test_what_a_batch_has_beyond_that_is_ignored():
    assert read() == read(unknown={"deep": [1, {}]}, partner_identities={}, api_key="k", ip=None)


@pytest.mark.parametrize("name", ["", "x" * 257, "a\0b"])
@pytest.mark.parametrize("where", ["user_attributes", "deleted_user_attributes"])
def test_a_name_that_no_attribute_may_have_is_refused(name, where):
    given = {name: "v"} if where == "user_attributes" else [name]
    with pytest.raises(Invalid, match=rf"1 to 256 characters and no NUL - at `\$\.{where}\."):
        read(**{where: given})


def test_reserved_names_mean_the_same_in_any_case_and_others_do_not():
    assert {"$address": b'"1"', "Level": b'"2"', "level": b'"3"', "$Custom": b'"4"'} == changes(
        user_attributes={"$Address": 1, "Level": 2, "level": 3, "$Custom": 4}
    )


def test_what_is_set_and_deleted_is_set():
    assert {"$address": b'"x"', "gone": None} == changes(
        user_attributes={"$address": "x"}, deleted_user_attributes=["$Address", "gone", "gone"]
    )


def test_a_hundred_attributes_are_taken_and_no_more():
    hundred = {f"k{n}": n for n in range(100)}
    assert 100 == len(changes(user_attributes=hundred))
    with pytest.raises(Invalid, match=r"at most 100 of them, and this one 101 - at `\$\.user_attr"):
        read(user_attributes=hundred | {"one more": 1})
    deleted = [f"d{n}" for n in range(100)]
    assert 200 == len(changes(user_attributes=hundred, deleted_user_attributes=deleted))
    with pytest.raises(Invalid, match=r"101 - at `\$\.deleted_user_attributes`"):
        read(deleted_user_attributes=["x"] * 101)


def test_a_batch_that_is_too_large_is_refused():
    fits = b'{"mpid":1,"ip":"%b"}' % (b"x" * (BATCH_BYTES - 18))
    assert BATCH_BYTES == len(fits)
    assert read_batch(fits)
    with pytest.raises(TooLarge, match="131072 bytes, and this one 131073"):
        read_batch(fits.replace(b"x", b"xx", 1))


def test_the_time_of_an_attribute_is_that_of_the_latest_event_that_tells_of_it():
    update = read(
        user_attributes={"$Address": "x", "b": 1, "c": 1},
        deleted_user_attributes=["d"],
        events=[
            attribute_change("$address", 5),
            attribute_change("$ADDRESS", 7, new="other"),
            attribute_change("$address", 6),
            attribute_change("d", 9, deleted=True),
            attribute_change("c"),
            {"event_type": "custom_event", "data": {"timestamp_unixtime_ms": 99}},
            {"event_type": "session_start"},
        ],
    )
    times = {each.name: each.time_us for each in update.changes}
    assert {"$address": 7000, "b": None, "c": None, "d": 9000} == times


def test_an_event_alone_changes_nothing():
    assert () == read(events=[attribute_change("$address", 5, new="x")]).changes


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        ({}, 'Required event field "event_type" is missing or empty.'),
        ({"event_type": ""}, 'Required event field "event_type" is missing or empty.'),
        ({"event_type": "user_attribute_change"}, '"user_attribute_name" is missing or empty.'),
        (attribute_change(""), '"user_attribute_name" is missing or empty.'),
        (attribute_change("k", -1), ">= 0"),
        (attribute_change("k", "yesterday"), "Expected `int | null`, got `str`"),
        (attribute_change("k", 1.5), "Expected `int | null`, got `float`"),
    ],
)
def test_an_event_that_does_not_fit_is_refused(event, sentence):
    with pytest.raises(Invalid, match=sentence) as refused:
        read(events=[{"event_type": "custom_event"}, event])
    assert "$.events[1]" in str(refused.value)


def test_historical_attributes_are_as_of_the_latest_event_of_the_batch():
    update = read(
        historical_at_us=NOW_US,
        user_attributes={"a": 1, "b": 2},
        deleted_user_attributes=["c"],
        events=[
            attribute_change("a", DAYS_AGO_MS - 5),
            {"event_type": "custom_event", "data": {"timestamp_unixtime_ms": DAYS_AGO_MS}},
            attribute_change("a", DAYS_AGO_MS - 6),
        ],
    )
    assert {DAYS_AGO_MS * 1000} == {each.time_us for each in update.changes}
    assert 3 == len(update.changes)


@pytest.mark.parametrize(
    ("events", "sentence"),
    [
        (None, "needs events"),
        ([], "needs events"),
        ([{"event_type": "custom_event"}], r"72 hours ago or earlier - at `\$\.events\[0\]"),
        ([attribute_change("k")], "72 hours ago or earlier"),
        (
            [attribute_change("k", DAYS_AGO_MS), attribute_change("k", DAYS_AGO_MS + 2 * HOUR_MS)],
            r"72 hours ago or earlier - at `\$\.events\[1\]",
        ),
    ],
)
def test_a_historical_batch_without_old_events_is_refused(events, sentence):
    with pytest.raises(Invalid, match=sentence):
        read(historical_at_us=NOW_US, events=events, user_attributes={"a": 1})


def test_an_empty_request_id_is_none():
    assert read(source_request_id="").request_id is None


def test_a_bulk_is_cut_into_batches_that_are_not_looked_into():
    parts = cut_bulk(b'[{"a": 1}, 5 , {"mpid":"x"}]')
    assert [b'{"a": 1}', b"5", b'{"mpid":"x"}'] == [bytes(each) for each in parts]
    assert 100 == len(cut_bulk(b"[" + b",".join([b"{}"] * 100) + b"]"))


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "this one is empty"),
        (b"{}", "Expected `array`"),
        (b"[]", "1 to 100 batches, and this one has 0"),
        (b"[" + b",".join([b"{}"] * 101) + b"]", "1 to 100 batches, and this one has 101"),
        (b'[{"user_attributes":{"k":NaN}}]', "not JSON"),
        (b"[{},]", "not JSON"),
        (b'[{"ip":"\xff"}]', "not valid UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_bulk_is_refused_whole(body, sentence):
    with pytest.raises(Invalid, match=sentence):
        cut_bulk(body)
