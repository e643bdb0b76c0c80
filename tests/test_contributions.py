"""What a profile contributes: of its facts, by the rules, cut into what one script takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import contributions
from service.contributions import Joint, changes_of, cut, facts_of, planned
from service.grouping import Definition, GroupAttribute, Rules

ME = b"m" * 16


def rules(*definitions):
    return Rules(
        version=9,
        definitions=tuple(
            Definition(
                id=f"group{number}",
                source_user_attribute=source,
                attributes=tuple(GroupAttribute(name, "latest") for name in names),
                number=number,
                created_at_us=0,
                created_by="",
                modified_at_us=0,
                modified_by="",
            )
            for number, (source, *names) in enumerate(definitions, start=1)
        ),
    )


def row(plan, *, state=b"D", seq=b"7", mpid=b"", listed=(), **values):
    held = {name.replace("_", "$").encode(): value for name, value in values.items()}
    return [state, seq, mpid, [held.get(name) for name in plan.names], list(listed)]


def of_one(env, plan, **facts):
    """Give what becomes of contributions of one profile: what it brings in, and what ends."""
    return changes_of({ME: facts_of(env, plan, row(plan, **facts))}, {ME: 0})


@pytest.fixture
def backing(servers):
    """Only the application is needed: what is tested is pure."""
    from tests.conftest import start

    return start(servers, "fake")


async def test_a_contribution_has_what_the_definition_names_and_the_profile_has(env):
    plan = planned(rules(("$Address", "dog", "$City", "cat", "gone")))

    lives, ends = of_one(
        env,
        plan,
        mpid=b"-5",
        _address=b'5 3 "A"',
        dog=b"6 6 null",
        _city=b'7 7 ["x y","z"]',
        gone=b"8",
    )

    [(iid, joint)] = lives.items()
    assert iid == env.mixer.instance_id(env.number, 1, "A")
    order = b"7ffffffffffffffb" + ME
    told = b'{"dog":[6,null],"$city":[7,["x y","z"]]}'
    assert Joint(1, "A", [(ME, b"7", b"3", order, b"0", told)]) == joint
    assert {} == ends


async def test_what_is_listed_and_not_named_any_more_ends(env):
    plan = planned(rules(("city",), ("$address",)))
    stays = env.mixer.instance_id(env.number, 1, "A")

    lives, ends = of_one(env, plan, city=b'1 1 "A"', listed=(stays, b"+4", b"x" * 16, b"-5"))

    assert {stays: b"4"} == {iid: joint.rows[0][4] for iid, joint in lives.items()}
    assert {b"x" * 16: (b"5", b"")} == {iid: joint.rows[0][4:] for iid, joint in ends.items()}


@pytest.mark.parametrize("value", [b"5", b"5 5 null", b'5 5 ""', b'5 5 ["A"]'])
async def test_what_nobody_shares_names_no_instance(env, value):
    assert ({}, {}) == of_one(env, planned(rules(("city", "dog"))), city=value, dog=b'1 1 "x"')


async def test_whoever_has_no_record_ends_everything_above_what_is_known_elsewhere(env):
    plan = planned(rules(("city",)))
    read = facts_of(env, plan, row(plan, seq=b"", state=b"C", listed=(b"x" * 16, b"-5")))

    _, ends = changes_of({ME: read}, {ME: 2**52})

    assert [b"%d" % (2**52 + 1)] == [joint.rows[0][1] for joint in ends.values()]


async def test_all_attributes_are_looked_through_where_definitions_name_many(env, monkeypatch):
    plan = planned(rules(("city", "dog")))
    monkeypatch.setattr(contributions, "NAMES", 1)
    answer = [b"D", b"7", b"", [b"x", b'1 1 "y"', b"dog", b'1 1 "true"', b"city", b'2 2 "A"'], []]

    read = facts_of(env, plan, answer)

    assert [b'{"dog":[1,"true"]}'] == [each.json for each in read.named.values()]


@given(
    sizes=st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=9), max_size=9),
    most=st.integers(1, 10),
    most_bytes=st.integers(1, 100),
    partitions=st.sampled_from([1, 3]),
)
def test_a_cut_keeps_every_change_and_the_size_of_scripts(sizes, most, most_bytes, partitions):
    class Env:
        def __init__(self):
            self.partitions = range(partitions)

        def home(self, iid):
            return b"%d" % (iid[0] % partitions)

    joints = {
        bytes([at]) * 16: Joint(at, "", [(ME, b"1", b"1", b"", b"0", b"x" * size) for size in each])
        for at, each in enumerate(sizes)
    }

    chunks = list(cut(Env(), joints, most, most_bytes))  # type: ignore[arg-type]

    found: dict[bytes, list[tuple[object, ...]]] = {}
    for tag, chunk in chunks:
        assert {tag} == {Env().home(iid) for iid, _ in chunk}
        assert len({iid for iid, _ in chunk}) == len(chunk)
        rows = [row for iid, joint in chunk for row in joint.rows]
        assert 0 < len(rows) <= most
        assert sum(len(row[-1]) for row in rows[:-1]) < most_bytes
        for iid, joint in chunk:
            assert joint.rows
            found.setdefault(iid, []).extend(joint.rows)
    assert {iid: joint.rows for iid, joint in joints.items()} == found
