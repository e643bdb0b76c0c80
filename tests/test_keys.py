"""Keys: each is built so that it is parsed as what it is, and lives where it has to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from service import keys

TAG = b"{7.3}"
MIXED = bytes(range(16))
texts = st.text(st.characters(codec="utf-8"), max_size=40)


def test_a_slot_is_that_of_the_server():
    for tag in (b"belong", b"7", b"7.12", b"123456.63.1000"):
        assert key_slot(b"{" + tag + b"}:state") == keys.slot_of(tag)


@pytest.mark.parametrize("partitions", [1, 2, 8, 64])
def test_partitions_lie_evenly_over_the_slots(partitions):
    slots = [keys.slot_of(tag.encode()) for tag in keys.partition_tags(7, partitions)]
    if partitions > 1:
        assert list(range(partitions)) == [slot * partitions // keys.SLOTS for slot in slots]


def test_tags_are_the_same_every_time():
    assert keys.partition_tags(7, 8) == keys.partition_tags(7, 8)


def test_no_two_environments_share_a_tag():
    tags = [tag for number in range(1, 40) for tag in keys.partition_tags(number, 8)]
    assert len(tags) == len(set(tags))


@pytest.mark.parametrize(
    ("built", "parsed"),
    [
        (keys.key(keys.REGISTRY, "version"), keys.Key(b"belong", "version", b"")),
        (keys.key(keys.directory(7), "version"), keys.Key(b"7", "version", b"")),
        (keys.group(keys.directory(7), 12), keys.Key(b"7", "group", b"12")),
        (keys.group_index(keys.directory(7), active=False), keys.Key(b"7", "inactive", b"")),
        (keys.allowance(keys.directory(7), "a:b"), keys.Key(b"7", "allowance", b"a:b")),
        (keys.key(keys.partition("7.3"), "count"), keys.Key(b"7.3", "count", b"")),
        (keys.memberships(TAG, MIXED), keys.Key(b"7.3", "m", MIXED)),
        (keys.segment(TAG, 12, 3, 5), keys.Key(b"7.3", "g", b"12:3:5")),
        (keys.segment(TAG, 0, 0, 0), keys.Key(b"7.3", "g", b"0:0:0")),
        (keys.identity_bucket(TAG, 65_535), keys.Key(b"7.3", "identity", b"65535")),
        *(
            (keys.of_profile(TAG, kind, MIXED), keys.Key(b"7.3", kind, MIXED))
            for kind in ("profile", "attributes", "identities", "fence")
        ),
    ],
)
def test_what_was_built_is_parsed(built, parsed):
    assert parsed == keys.parse(built)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"other",
        b"7:groups",
        b"{7}:",
        b"{7}:state",
        b"{7}:groups:1",
        b"{7}:group:0",
        b"{7}:group:x",
        b"{7}:attribute:k",
        b"{7}:allowance",
        b"{7.3}:allowance:a",
        b"{7.3}:groups",
        b"{7.3}:m:short",
        b"{7.3}:m",
        b"{7.3}:g:1:2",
        b"{7.3}:g:01:2:3",
        b"{7.3}:identity:x",
        b"{7.3}:none",
        b"{belong}:groups",
        b"x{7}:groups",
    ],
)
def test_what_the_schema_does_not_have_is_not_parsed(raw):
    assert keys.parse(raw) is None


@given(st.binary(min_size=16, max_size=16))
def test_an_id_may_be_any_bytes(mixed):
    assert keys.Key(b"7.3", "m", mixed) == keys.parse(keys.memberships(TAG, mixed))


@given(texts, texts, texts, texts)
def test_no_two_attributes_share_an_index(key, value, other_key, other_value):
    def index(key, value):
        return keys.attribute_index(b"{7}", key, value, active=True)

    same = (key, value) == (other_key, other_value)
    assert same == (index(key, value) == index(other_key, other_value))
    assert index(key, None) != index(other_key, other_value)
    assert keys.parse(index(key, value)) is not None


@given(texts)
def test_active_and_inactive_groups_stand_in_different_indexes(text):
    def indexes(*, active):
        return keys.group_indexes(
            b"{7}",
            name=text,
            membership_type="static",
            attributes=[(text, text)],
            active=active,
        )

    active, inactive = indexes(active=True), indexes(active=False)
    assert (5, 5, set()) == (len(active), len(inactive), active & inactive)
    assert None not in {keys.parse(key) for key in active | inactive}


@given(st.sampled_from(sorted(keys.IDENTITY_CODES)), texts)
def test_an_identity_field_is_parsed_as_what_it_was_built_from(kind, value):
    assert (kind, value) == keys.parse_identity(keys.identity_field(kind, value))


@pytest.mark.parametrize("field", [b"", b"nothing", b"zz:value", b":x"])
def test_a_field_of_no_known_type_is_refused(field):
    with pytest.raises(ValueError, match="no known identity type"):
        keys.parse_identity(field)


def test_every_type_has_a_code_of_its_own():
    assert len(keys.IDENTITY_CODES) == len(keys.IDENTITY_KINDS)
