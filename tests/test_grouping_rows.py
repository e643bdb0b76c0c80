"""The tables of the wire document, row by row, over HTTP: ingested, derived, seen.

2.2 is who joins, leaves and changes; 2.3 more users than the limit; 2.4 what is an equal value;
2.5 how things are called; 2.6 what aggregations give. Where a row leaves a choice, design 3.2 and
6.2 decide, and COMPATIBILITY.md says so.
"""

from __future__ import annotations

import enum

import pytest

from service import auth
from tests.client import Client
from tests.face import NOW_MS, Face
from tests.naive import when

DOG = ("has_dog", "boolean_or")


@pytest.fixture
async def face(api):
    application = await api.store.registry.application("demo")
    return Face(api, api.admin, application.workspace_id)


async def settings(face, **changes):
    """Change settings of the application, and have done what follows."""
    await face.api.store.registry.update_application("demo", **changes)
    await face.run()
    await face.run()


async def household(face, *shares, **users):
    """Users of one address: `_1={"has_dog": "true"}`; their values come in that order."""
    await face.define(*shares)
    for at, (name, attributes) in enumerate(users.items()):
        await face.say(int(name[1:]), at=at, address="here", **attributes)


async def outcome(face, kind, *values):
    """What users 1, 2, … with these values of `x` have as `household:x`; all the same."""
    await face.define(("x", kind))
    for user, value in enumerate(values, 1):
        given = {} if value is ABSENT else {"x": value}
        await face.say(user, at=user, address="here", **given)
    seen = [await face.inherits(user) for user in range(1, len(values) + 1)]
    assert [seen[0]] * len(values) == seen
    assert set(seen[0]) <= {"household:x"}
    return seen[0].get("household:x")


class Marker(enum.Enum):
    """What is no value; with a name that is the same in every process of the tests."""

    ABSENT = enum.auto()

    def __repr__(self):
        return self.name.lower()


ABSENT = Marker.ABSENT


# 2.1 The job


async def test_weekly_nothing_changes_between_runs(face):
    await settings(face, grouping="weekly")
    await household(face, ("age", "sum"), _1={"age": 3}, _2={"age": 4})
    assert [{}, {}] == [await face.inherits(1), await face.inherits(2)]
    await face.recompute()
    await face.say(1, address="there", age=5)
    await face.say(3, address="here", age=6)
    seen = [await face.inherits(user) for user in (1, 2, 3)]
    assert [{"household:age": "7"}, {"household:age": "7"}, {}] == seen
    await face.recompute()
    seen = [(await face.inherits(user))["household:age"] for user in (1, 2, 3)]
    assert ["5", "10", "10"] == seen


async def test_weekly_who_is_erased_counts_no_more_at_once(face):
    await settings(face, grouping="weekly")
    await household(face, ("age", "sum"), _1={"age": 3}, _2={"age": 4})
    await face.recompute()
    await face.say(1, age=100)
    await face.erase(2)
    assert {"household:age": "3"} == await face.inherits(1)


async def test_weekly_what_is_taken_from_a_definition_goes_at_once_and_what_is_new_comes_later(
    face,
):
    await settings(face, grouping="weekly")
    await household(face, DOG, ("age", "sum"), _1={"has_dog": "true", "age": 3}, _2={"age": 4})
    await face.recompute()
    changed = [{"id": "age", "type": "average"}, {"id": "has_cat", "type": "boolean_or"}]
    await face.change(attributes=changed)
    assert [{}, {}] == [await face.inherits(1), await face.inherits(2)]
    await face.recompute()
    expected = {"household:age": "3.5", "household:has_cat": "false"}
    assert [expected, expected] == [await face.inherits(1), await face.inherits(2)]


# 2.2 Join, leave, change


async def test_two_profiles_with_an_equal_source_value_are_one_instance(face):
    await household(face, DOG, _1={"has_dog": "true"}, _2={})
    assert {"household:has_dog": "true"} == await face.inherits(1)
    assert {"household:has_dog": "true"} == await face.inherits(2)
    [one] = await face.instances()
    assert ("here", 2) == (one["value"], one["size"])


async def test_one_profile_alone_is_an_instance_of_one(face):
    await household(face, DOG, _1={"has_dog": "true"})
    assert {"household:has_dog": "true"} == await face.inherits(1)
    one = await face.instance("here")
    assert (1, 0, False) == (one["size"], one["excluded_count"], one["overflow"])


async def test_a_changed_source_attribute_recomputes_the_old_and_the_new_instance_at_once(face):
    await household(face, DOG, _1={"has_dog": "true"}, _2={})
    await face.say(3, address="there")
    await face.say(1, address="there")
    seen = [await face.inherits(user) for user in (1, 2, 3)]
    assert ["true", "false", "true"] == [each["household:has_dog"] for each in seen]
    assert {"here": 1, "there": 2} == {
        each["value"]: each["size"] for each in await face.instances()
    }


async def test_a_deleted_source_attribute_takes_the_inherited_attributes_away(face):
    await household(face, DOG, _1={"has_dog": "true"}, _2={})
    await face.say(1, "address")
    assert {"has_dog": "true"} == await face.has(1)
    assert {"household:has_dog": "false"} == await face.inherits(2)


@pytest.mark.parametrize("how", ["moves", "is deleted", "is erased"])
async def test_an_instance_disappears_when_its_last_member_leaves(face, how):
    await household(face, DOG, _1={"has_dog": "true"})
    [there] = await face.instances()
    if how == "moves":
        await face.say(1, address="there")
    elif how == "is deleted":
        await face.say(1, "address")
    else:
        await face.erase(1)
    assert await face.instance("here") is None
    await face.client.get(f"{face.groups}/household/instances/{there['id']}", 404)


async def test_a_deleted_definition_takes_what_it_gave_away(face):
    await household(face, DOG, _1={"has_dog": "true"}, _2={})
    await face.client.delete(f"{face.groups}/household")
    assert {} == await face.inherits(1)
    await face.run()
    assert [{}, {}] == [await face.inherits(1), await face.inherits(2)]
    await face.client.get(f"{face.groups}/household/instances", 404)


async def test_a_definition_that_is_made_again_gives_nothing_of_before(face):
    await household(face, DOG, _1={"has_dog": "true"}, _2={})
    await face.drop()
    await face.define(DOG, source="city")
    assert [{}, {}] == [await face.inherits(1), await face.inherits(2)]
    assert [] == await face.instances()


async def test_a_changed_source_rebuilds_all_instances(face):
    await household(face, DOG, _1={"has_dog": "true", "city": "a"}, _2={"city": "b"})
    await face.say(3, address="elsewhere", city="a")
    await face.change(source_user_attribute="city")
    seen = [await face.inherits(user) for user in (1, 2, 3)]
    assert ["true", "false", "true"] == [each["household:has_dog"] for each in seen]
    assert {"a": 2, "b": 1} == {each["value"]: each["size"] for each in await face.instances()}


async def test_an_attribute_removed_from_the_definition_is_taken_away_alone(face):
    await household(face, DOG, ("age", "sum"), _1={"has_dog": "true", "age": 3}, _2={})
    assert {"household:has_dog": "true", "household:age": "3"} == await face.inherits(2)
    await face.change(attributes=[{"id": "age", "type": "sum"}])
    assert [{"household:age": "3"}] * 2 == [await face.inherits(1), await face.inherits(2)]


async def test_an_attribute_added_to_the_definition_comes_with_the_job(face):
    await household(face, DOG, _1={"has_dog": "true", "age": 3}, _2={"age": 4})
    await face.change(
        attributes=[{"id": "has_dog", "type": "boolean_or"}, {"id": "age", "type": "sum"}]
    )
    expected = {"household:has_dog": "true", "household:age": "7"}
    assert [expected] * 2 == [await face.inherits(1), await face.inherits(2)]


async def test_a_definition_comes_over_users_that_were_there_before(face):
    await face.say(1, address="here", has_dog="true")
    await face.say(2, address="here")
    await face.say(3, address="there")
    await face.define(DOG)
    seen = [await face.inherits(user) for user in (1, 2, 3)]
    assert ["true", "true", "false"] == [each["household:has_dog"] for each in seen]


async def test_an_erased_profile_counts_no_more_at_once(face):
    await household(face, ("age", "sum"), _1={"age": 3}, _2={"age": 4})
    assert {"household:age": "7"} == await face.inherits(1)
    counts = await face.erase(2)
    assert {"household:age": "3"} == await face.inherits(1)
    assert await face.has(2) is None
    assert 1 == counts["instances"]


async def test_another_name_of_a_profile_moves_nobody(face):
    """Aliasing copies no attributes; and what a user is called decides about no group."""
    await household(face, ("age", "sum"), _1={"age": 3})
    await face.say(2, address="there", age=4)
    await face.say(2, identities={"alias": "two", "other": "2"})
    await face.say(1, identities={"alias": "two"})
    assert ["3", "4"] == [(await face.inherits(user))["household:age"] for user in (1, 2)]


async def test_environments_do_not_share_instances(face):
    await household(face, ("age", "sum"), _1={"age": 3}, _2={"age": 4})
    await face.say(1, address="here", age=10, environment="development")
    await face.say(5, address="here", age=20, environment="development")
    assert {"household:age": "7"} == await face.inherits(1)
    assert {"household:age": "30"} == await face.inherits(1, "development")
    assert await face.has(5) is None
    [one] = await face.instances(query="?environment=development")
    assert ("here", 2, "development") == (one["value"], one["size"], one["environment"])
    [one] = await face.instances()
    assert ("here", 2, "production") == (one["value"], one["size"], one["environment"])


async def test_workspaces_do_not_share_instances(face):
    other = await face.api.store.registry.create_application("other")
    token = await auth.mint(
        face.api.store.registry, applications=["other"], scopes=["admin"], subject="other"
    )
    another = Face(face.api, Client(face.api.conductor, token), other.workspace_id)
    await another.define(("age", "sum"))
    await household(face, ("age", "sum"), _1={"age": 3}, _2={"age": 4})
    await another.say(1, address="here", age=10)
    assert {"household:age": "7"} == await face.inherits(1)
    assert {"household:age": "10"} == await another.inherits(1)
    ids = {(await each.instances())[0]["id"] for each in (face, another)}
    assert 2 == len(ids)


# 2.3 More than the limit share a value


async def test_the_eleventh_user_is_left_out_and_counted(face):
    await face.define(("age", "sum"))
    for user in range(1, 13):
        await face.say(user, at=user, address="here", age=1)
    seen = [await face.inherits(user) for user in range(1, 13)]
    assert [{"household:age": "10"}] * 10 + [{}] * 2 == seen
    one = await face.instance("here")
    assert (10, 2, True) == (one["size"], one["excluded_count"], one["overflow"])
    assert [await face.profile(user) for user in range(1, 11)] == [
        each["id"] if isinstance(each, dict) else each for each in one["members"]
    ]


async def test_those_who_joined_first_are_kept_whenever_they_are_told(face):
    await settings(face, users_per_group=2)
    await face.define(("age", "sum"))
    for user, joined in ((1, 30), (2, 20), (3, 10)):
        await face.say(user, at=joined, address="here", age=user)
    seen = [await face.inherits(user) for user in (1, 2, 3)]
    assert [{}, {"household:age": "5"}, {"household:age": "5"}] == seen


async def test_of_those_who_joined_together_the_smaller_mpid_is_kept(face):
    await settings(face, users_per_group=3)
    await face.define(("age", "sum"))
    for user in (2**62, 11, 9, -5, 2):
        await face.say(user, at=7, address="here", age=user)
    assert ["6", "6", "6"] == [(await face.inherits(user))["household:age"] for user in (-5, 2, 9)]
    assert [{}, {}] == [await face.inherits(11), await face.inherits(2**62)]


async def test_saying_the_same_value_again_costs_nobody_their_place(face):
    await settings(face, users_per_group=1)
    await face.define(("age", "sum"))
    await face.say(1, at=10, address="here", age=1)
    await face.say(2, at=20, address="here", age=2)
    await face.say(1, at=30, address="here", age=1)
    assert [{"household:age": "1"}, {}] == [await face.inherits(1), await face.inherits(2)]


@pytest.mark.parametrize("how", ["moves", "is deleted", "is erased"])
async def test_a_place_that_becomes_free_goes_to_the_next(face, how):
    await settings(face, users_per_group=2)
    await face.define(("age", "sum"))
    for user in (1, 2, 3, 4):
        await face.say(user, at=user, address="here", age=user)
    if how == "moves":
        await face.say(1, address="there")
    elif how == "is deleted":
        await face.say(1, "address")
    else:
        await face.erase(1)
    seen = [await face.inherits(user) for user in (2, 3, 4)]
    assert [{"household:age": "5"}, {"household:age": "5"}, {}] == seen


async def test_the_limit_is_a_setting(face):
    await face.define(("age", "sum"))
    for user in (1, 2, 3):
        await face.say(user, at=user, address="here", age=user)
    assert {"household:age": "6"} == await face.inherits(3)
    await settings(face, users_per_group=2)
    seen = [await face.inherits(user) for user in (1, 2, 3)]
    assert [{"household:age": "3"}, {"household:age": "3"}, {}] == seen
    await settings(face, users_per_group=3)
    assert [{"household:age": "6"}] * 3 == [await face.inherits(user) for user in (1, 2, 3)]


# 2.4 Matching and normalisation of the source value


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("123 Main St", "123 Main St", True),
        ("123 Main St", "123 main st", False),
        ("123 Main St", " 123 Main St", False),
        ("é", "e\u0301", False),
        (123, "123", True),
        (123, "123.0", False),
        (1.0, "1.0", True),
        (True, "true", True),
        (False, "False", False),
    ],
)
async def test_values_are_equal_as_exact_texts(face, one, other, equal):
    await face.define(("age", "sum"))
    await face.say(1, address=one, age=1)
    await face.say(2, address=other, age=2)
    expected = ["3", "3"] if equal else ["1", "2"]
    assert expected == [(await face.inherits(user))["household:age"] for user in (1, 2)]


async def test_names_are_case_sensitive(face):
    await face.define(("age", "sum"), ("Age", "sum"), source="Street")
    await face.say(1, Street="here", age=1)
    await face.say(2, Street="here", Age=2)
    await face.say(3, street="here", age=4)
    expected = {"household:age": "1", "household:Age": "2"}
    assert [expected, expected, {}] == [await face.inherits(user) for user in (1, 2, 3)]


async def test_reserved_names_mean_the_same_in_any_case(face):
    await face.define(("$Age", "sum"), source="$Address")
    await face.say(1, **{"$ADDRESS": "here", "$age": 1})
    await face.say(2, **{"$address": "here", "$aGe": 2})
    assert [{"household:$Age": "3"}] * 2 == [await face.inherits(user) for user in (1, 2)]


@pytest.mark.parametrize("value", [None, "", [], ["here"]], ids=repr)
async def test_null_the_empty_text_and_lists_are_shared_by_nobody(face, value):
    await face.define(("age", "sum"))
    await face.say(1, address=value, age=1)
    await face.say(2, address=value, age=2)
    assert [{}, {}] == [await face.inherits(1), await face.inherits(2)]
    assert [] == await face.instances()


# 2.5 Names


async def test_the_attribute_of_a_member_itself_stays_what_it_was(face):
    await household(face, DOG, _1={"has_dog": "true"}, _2={"has_dog": "false"}, _3={})
    expected = {"$address": "here", "household:has_dog": "true"}
    assert [
        expected | {"has_dog": "true"}, expected | {"has_dog": "false"}, expected
    ] == [await face.has(user) for user in (1, 2, 3)]  # fmt: skip


async def test_names_of_as_many_characters_as_there_may_be_are_inherited(face):
    named, attribute = "d" * 32, "a" * 223
    await face.define((attribute, "sum"), named=named)
    await face.say(1, **{"$address": "here", attribute: 5})
    assert {f"{named}:{attribute}": "5"} == await face.inherits(1)
    assert 256 == len(named) + 1 + len(attribute)


async def test_nobody_can_write_what_is_inherited(face):
    await face.define(DOG)
    await face.say(1, **{"$address": "here", "household:has_dog": "true", "household:x": "y"})
    assert {"household:has_dog": "false"} == await face.inherits(1)


# 2.6 Aggregations, column by column


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["true", "false"], "true"),
        (["false", "false"], "false"),
        ([True, False], "true"),
        ([False], "false"),
        (["TRUE", "no"], "true"),
        (["True"], "true"),
        ([1, "1"], "false"),
        (["true "], "false"),
        (["yes", ["true"]], "false"),
        ([ABSENT, "true"], "true"),
        ([ABSENT, "false"], "false"),
        ([None, "true"], "true"),
        ([None, "false"], "false"),
        ([None], "false"),
        ([""], "false"),
        ([ABSENT, ABSENT], "false"),
    ],
    ids=repr,
)
async def test_boolean_or_is_true_if_anybody_has_true_and_else_false(face, values, expected):
    assert expected == await outcome(face, "boolean_or", *values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["a", "b"], "b"),
        (["a", ["b", "c"]], ["b", "c"]),
        (["a", []], []),
        (["a", True], "true"),
        (["a", 1.50], "1.5"),
        (["a", ""], ""),
        (["a", ABSENT], "a"),
        (["a", None], "a"),
        ([ABSENT], None),
        ([None, None], None),
    ],
    ids=repr,
)
async def test_latest_is_what_was_set_last_as_it_is_stored(face, values, expected):
    assert expected == await outcome(face, "latest", *values)


async def test_latest_goes_by_the_time_of_the_change_event(face):
    await face.define(("x", "latest"))
    await face.say(1, at={"$address": 0, "x": 20}, address="here", x="later")
    await face.say(2, at={"$address": 0, "x": 10}, address="here", x="told later")
    assert {"household:x": "later"} == await face.inherits(2)


async def test_latest_without_a_change_event_goes_by_the_time_of_receipt(face):
    await face.define(("x", "latest"))
    await face.say(1, address="here", x="received")
    await face.say(2, at=10, address="here", x="an hour ago")
    assert {"household:x": "received"} == await face.inherits(2)
    await face.say(3, address="here", x="received later")
    assert {"household:x": "received later"} == await face.inherits(1)


async def test_latest_follows_a_value_that_is_said_again(face):
    await face.define(("x", "latest"))
    await face.say(1, at=10, address="here", x="one")
    await face.say(2, at=20, address="here", x="two")
    await face.say(1, at=30, x="one")
    assert {"household:x": "one"} == await face.inherits(2)


async def test_a_profile_of_the_other_face_is_named_with_its_mpid_as_soon_as_it_has_one(face):
    await face.define(("x", "latest"))
    attributes = [{"key": "$address", "value": "here"}, {"key": "x", "value": "new"}]
    made = await face.client.post(
        "/api/v1/applications/demo/profile/",
        {"custom_id": "user 1", "attributes": attributes},
        201,
    )
    one = await face.instance("here")
    assert {"profile_id": made.body.id, "mpid": None} == one["explain"]["x"]["from"]
    await face.send({"user_identities": {"customerid": "user 1"}})
    one = await face.instance("here")
    mpid = one["explain"]["x"]["from"]["mpid"]
    path = f"/userprofile/v1/1/1/{face.workspace}/{mpid}?fields=user_attributes"
    shown = (await face.client.get(path)).plain
    assert (mpid, "new") == (shown["mpid"], shown["user_attributes"]["household:x"])


async def test_of_values_set_at_the_same_time_latest_is_that_of_the_smaller_mpid(face):
    await face.define(("x", "latest"))
    for user in (10, 9, 2**62, -3, 4):
        await face.say(user, at=5, address="here", x=f"of {user}")
    assert {"household:x": "of -3"} == await face.inherits(10)
    one = await face.instance("here")
    assert {
        "value": "of -3",
        "from": {"profile_id": await face.profile(-3), "mpid": -3},
        "set_at": when((NOW_MS + 5) * 1000),
    } == one["explain"]["x"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2], "3"),
        (["34.32", 0.1], "34.42"),
        ([0.1, 0.2], "0.3"),
        (["0.10", "-0.1"], "0"),
        (["9" * 30, 1], "1" + "0" * 30),
        (["0.000000000000001", "9" * 30], "9" * 30 + ".000000000000001"),
        (["007", "1.50"], "8.5"),
        ([ABSENT, 5], "5"),
        ([None, 5], "5"),
        ([0], "0"),
        (["-0"], "0"),
        (["yes", 5, ["1"], "", "1e3", " 1", "+1", ".5", "1.", "0x1", "1,5", "٣", True], "5"),
        (["9" * 31, "0." + "1" * 16, 5], "5"),
        ([ABSENT, ABSENT], None),
        ([None], None),
        (["yes"], None),
    ],
    ids=repr,
)
async def test_sum_adds_what_is_a_number_exactly(face, values, expected):
    await settings(face, users_per_group=20)
    assert expected == await outcome(face, "sum", *values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2], "1.5"),
        ([1, 1, 2], "1.3333333333"),
        ([2, 2, 1], "1.6666666667"),
        (["0.00000000005", "0"], "0"),
        (["0.0000000001", "0"], "0"),
        (["0.0000000003", "0"], "0.0000000002"),
        (["-0.0000000001", "0"], "0"),
        (["-0.0000000003", "0"], "-0.0000000002"),
        ([ABSENT, 4, 2], "3"),
        ([None, 4, 2], "3"),
        (["yes", 4, 2], "3"),
        (["9" * 30, "9" * 30 + ".000000000000001"], "9" * 30),
        ([10, 30], "20"),
        ([ABSENT], None),
        ([None, None], None),
        (["yes", []], None),
    ],
    ids=repr,
)
async def test_average_is_over_those_who_have_a_number_half_even(face, values, expected):
    assert expected == await outcome(face, "average", *values)


async def test_everything_inherited_is_a_text(face):
    await household(
        face,
        DOG, ("age", "sum"), ("mean", "average"), ("last", "latest"),
        _1={"has_dog": True, "age": 1.50, "mean": 2, "last": 7},
        _2={"has_dog": False, "age": 1, "mean": 3, "last": 12345678901234567890},
    )  # fmt: skip
    assert {
        "household:has_dog": "true",
        "household:age": "2.5",
        "household:mean": "2.5",
        "household:last": "12345678901234567890",
    } == await face.inherits(1)
