"""Ids: their text, their packed form and their mix."""

from __future__ import annotations

import uuid
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import ids

MALFORMED = [
    "",
    "x",
    "0" * 32,
    "0" * 36,
    "{00000000-0000-4000-8000-000000000000}",
    "00000000-0000-4000-8000-00000000000g",
    "00000000-0000-4000-8000-00000000000٣",
    "00000000-0000-4000-8000-0000000000-0",
    "-0000000-0000-4000-8000-000000000000",
    "00000000-0000-4000-8000-00000000000\n",
    "00000000-0000-4000-8000-000000000000 ",
    " 0000000-0000-4000-8000-000000000000",
    "0000000000-00-4000-8000-000000000000",
]


@pytest.fixture
def mixer():
    return ids.Mixer(bytes(range(32)))


@given(st.uuids())
def test_text_and_bytes_are_the_same_id(value):
    assert (value.bytes, str(value)) == (ids.parse(str(value)), ids.text(value.bytes))


@given(st.uuids())
def test_upper_case_is_the_same_id(value):
    assert value.bytes == ids.parse(str(value).upper())


@pytest.mark.parametrize("text", MALFORMED)
def test_any_other_text_is_no_id(text):
    assert ids.parse(text) is None


@pytest.mark.parametrize("text", MALFORMED)
def test_packing_leaves_out_what_is_malformed_and_says_where(text):
    good = str(uuid.UUID(int=1))
    packed = uuid.UUID(int=1).bytes
    assert (packed * 2, [1]) == ids.pack([good, text, good])


def test_malformed_texts_do_not_make_up_for_one_another():
    short, long = str(uuid.UUID(int=1))[:-1], str(uuid.UUID(int=1)) + "0"
    assert (b"", [0, 1]) == ids.pack([short, long])


@given(st.lists(st.uuids()))
def test_packing_keeps_the_order(values):
    packed, malformed = ids.pack([str(value) for value in values])
    assert ([value.bytes for value in values], []) == (ids.split(packed), malformed)


@given(st.lists(st.one_of(st.uuids().map(str), st.text(max_size=40))))
def test_packing_many_is_as_parsing_each(texts):
    packed, malformed = ids.pack(texts)
    parsed = [ids.parse(text) for text in texts]
    assert [each for each in parsed if each is not None] == ids.split(packed)
    assert [at for at, each in enumerate(parsed) if each is None] == malformed


def test_mixing_is_undone_by_unmixing(mixer):
    packed = b"".join(ids.new() for _ in range(100))
    assert packed == mixer.unmix(mixer.mix(packed))


def test_the_mix_of_an_id_does_not_depend_on_its_neighbours(mixer):
    one, two = ids.new(), ids.new()
    assert mixer.mix(one) + mixer.mix(two) == mixer.mix(one + two)


@pytest.mark.parametrize("size", [1, 15, 17])
@pytest.mark.parametrize("way", ["mix", "unmix"])
def test_a_partial_id_is_refused_and_shifts_nothing(mixer, way, size):
    one = ids.new()
    before = getattr(mixer, way)(one)
    with pytest.raises(ValueError, match="no whole number of ids"):
        getattr(mixer, way)(b"x" * size)
    assert before == getattr(mixer, way)(one)


def test_another_application_mixes_otherwise(mixer):
    one = ids.new()
    assert mixer.mix(one) != ids.Mixer(bytes(32)).mix(one)


def test_ids_that_begin_alike_are_spread_evenly(mixer):
    packed = b"".join(n.to_bytes(16, "big") for n in range(16_000))
    held = Counter(ids.head(each) % 16 for each in ids.split(mixer.mix(packed)))
    assert 800 < min(held.values()) < max(held.values()) < 1200


@pytest.mark.parametrize("partitions", [1, 8, 64])
def test_drawn_ids_lie_in_the_partition_asked_for(mixer, partitions):
    for partition in range(partitions):
        drawn = mixer.draw(partition, partitions, 40)
        assert 40 == len(set(drawn))
        assert {partition} == {ids.head(each) % partitions for each in drawn}
        unmixed = [uuid.UUID(bytes=mixer.unmix(each)) for each in drawn]
        assert {(4, uuid.RFC_4122)} == {(each.version, each.variant) for each in unmixed}


def test_an_identity_has_one_place(mixer):
    place = mixer.place_identity("email", "x", 8)
    assert place == mixer.place_identity("email", "x", 8)
    assert 0 <= place[0] < 8


def test_identities_spread_over_places(mixer):
    places = {mixer.place_identity("email", str(n), 8) for n in range(1000)}
    assert len(places) > 990


def test_keys_of_different_purposes_differ():
    assert ids.derive(b"s", b"mix", 16) != ids.derive(b"s", b"identity", 16)


def test_one_application_has_one_mixer():
    assert ids.mixer(b"s") is ids.mixer(b"s")


@pytest.mark.parametrize("number", [0, 7, -7, 2**63 - 1, -(2**63)])
def test_an_mpid_is_a_signed_64_bit_number(number):
    assert number == ids.parse_mpid(f"mpid:{number}")


@pytest.mark.parametrize(("environment", "number"), [(1, 1), (7, 2**32 - 1), (2**21, 5)])
def test_an_audience_has_the_numbers_of_its_environment_and_its_group(environment, number):
    audience = ids.audience_id(environment, number)
    assert environment * 2**32 + number == audience
    assert (environment, number) == ids.parse_audience_id(str(audience))


@pytest.mark.parametrize("text", [
    "", "0", "1", str(2**32 - 1), str(2**32), str(2**33), "-4294967297", "+4294967297",
    "04294967297", "4294967297 ", "4294967297\n", "4294967297.0", "4_294_967_297", "9" * 20,
    "9" * 5000, "\u0664294967297", "x",
])  # fmt: skip
def test_what_is_no_audience_is_none(text):
    assert ids.parse_audience_id(text) is None


@pytest.mark.parametrize("text", [
    "7", "mpid", "mpid:", "mpid:x", "mpid:01", "mpid:-0", "mpid:+1", "mpid: 1", "mpid:1 ", "MPID:1",
    "mpid:٣", "mpid:1\n", f"mpid:{2**63}", f"mpid:{-(2**63) - 1}", "mpid:" + "9" * 5000,
])  # fmt: skip
def test_what_is_no_mpid_is_none(text):
    assert ids.parse_mpid(text) is None


@given(st.lists(st.binary(min_size=16, max_size=16)))
def test_the_heads_of_many_are_those_of_each(several):
    assert [ids.head(each) for each in several] == ids.heads(b"".join(several))
