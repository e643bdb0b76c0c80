"""Dynamic groups over HTTP: what is written and shown of them, and that they look like others."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from service.rule_trees import SENT_BYTES
from service.rules import TREE_BYTES
from service.worker import work
from tests.client import DEMO, GROUPS, P1, P2, Api, Client, opened
from tests.test_profile_groups import FIELDS, everywhere_404

if TYPE_CHECKING:
    from tests import backings

P3 = "00000000-0000-4000-8000-000000000003"
PRO = {"attribute": "plan", "condition": "is", "value": "pro"}
FOLLOWS = "The members of a dynamic group follow its rule tree, and are not written."
BULK = f"{DEMO}/memberships/bulk/"
SAMPLE = {
    "operator": "AND",
    "children": [
        {
            "operator": "OR",
            "children": [
                {"attribute": "total_comments_posted", "condition": "greater_than", "value": 10},
                {"attribute": "has_ever_commented", "condition": "is", "value": True},
            ],
        }
    ],
}
"""The one of LiveLike's documents, with its commas mended."""


async def have(client: Client, profile: str, **attributes: str) -> None:
    """Give a profile these attributes, and no others. It need not be known yet."""
    path = f"/api/v1/profiles/{profile}/?client_id=demo"
    pairs = [{"key": name, "value": value} for name, value in attributes.items()]
    if (await client.call("GET", path)).status == 404:
        group = await client.group()
        await client.post(f"{GROUPS}/{group}/members/", {"profile_ids": [profile]})
        await client.patch(path, {"attributes": pairs})
        await client.delete(f"{GROUPS}/{group}/members/{profile}/")
        await client.delete(f"{GROUPS}/{group}/")
    await client.patch(path, {"attributes": pairs})


async def dynamic(client: Client, tree: object = PRO, **fields: Any) -> str:
    """Create a dynamic group, and give its id."""
    return await client.group(membership_type="dynamic", rule_tree=tree, **fields)


async def members(client: Client, group: str, query: str = "") -> list[str]:
    """Give the ids of the members, as their list says."""
    pages = await client.walk(f"{GROUPS}/{group}/members/{query}")
    return sorted(row.id for page in pages for row in page.results)


async def groups(client: Client) -> list[tuple[str, Any, Any]]:
    """Give what is known of all groups, to see that nothing changed."""
    found = (await client.get(f"{GROUPS}/?include_inactive=true")).plain["results"]
    return [(each["name"], each.get("rule_tree"), each.get("status")) for each in found]


# --- what is written and shown


async def test_a_dynamic_group_shows_its_rule_tree_and_how_far_it_is_built(admin: Client) -> None:
    given = {
        "name": "Commenters",
        "description": "d",
        "attributes": [{"key": "k", "value": "v"}],
        "custom_id": "commenters",
        "membership_type": "dynamic",
        "rule_tree": SAMPLE,
    }

    body = (await admin.post(f"{GROUPS}/", given, 201)).plain

    assert [*FIELDS, "rule_tree", "status"] == list(body)
    assert given == {name: body[name] for name in given}
    assert ("building", True) == (body["status"]["state"], body["is_active"])
    assert body == (await admin.get(f"{GROUPS}/commenters/")).plain
    assert [body] == (await admin.get(f"{GROUPS}/")).plain["results"]


async def test_when_it_is_built_it_is_ready(api: Api, admin: Client) -> None:
    await have(admin, P1, plan="pro")
    await have(admin, P2, plan="free")
    group = await dynamic(admin)
    begun = (await admin.get(f"{GROUPS}/{group}/")).body.status
    assert ("building", 0, 2) == (begun.state, begun.done, begun.total)

    await work(api.store, grace_us=0)

    body = (await admin.get(f"{GROUPS}/{group}/")).body
    assert ("ready", 1) == (body.status.state, body.profile_count)
    assert body.status.done == body.status.total
    assert [P1] == await members(admin, group)


async def test_a_static_group_has_neither_rule_tree_nor_status(admin: Client) -> None:
    group = await admin.group()

    assert FIELDS == list((await admin.get(f"{GROUPS}/{group}/")).plain)


async def test_a_group_in_a_tree_is_named_by_its_custom_id_and_shown_by_its_id(
    admin: Client,
) -> None:
    vip = await admin.group(custom_id="vip")

    for given in ("vip", "custom_id:vip", vip, vip.upper()):
        group = await dynamic(admin, {"operator": "NOT", "children": [{"group": given}]})
        body = (await admin.get(f"{GROUPS}/{group}/")).plain
        assert {"operator": "NOT", "children": [{"group": vip}]} == body["rule_tree"], given


NUMBERS = {
    b"0.1": b"0.1",
    b"12": b"12",
    b"-0.5": b"-0.5",
    b"900719925474099300000001": b"900719925474099300000001",
    b'"12.50"': b'"12.50"',
}


@pytest.mark.parametrize("written", NUMBERS)
async def test_a_number_of_a_tree_is_shown_as_it_was_written(admin: Client, written: bytes) -> None:
    tree = b'{"attribute":"a","condition":"less_than","value":%b}' % written
    body = b'{"name":"n","membership_type":"dynamic","rule_tree":%b}' % tree

    content = (await admin.post(f"{GROUPS}/", body, 201)).content

    assert b'"value":%b' % NUMBERS[written] in content


async def test_numbers_are_compared_exactly(admin: Client) -> None:
    """As floats, 0.30000000000000004 and 12345678901234567 were equal to what is next to them."""
    await have(admin, P1, small="0.3", large="12345678901234567")
    for name, value, expected in (
        ("small", b"0.3", True),
        ("small", b"0.300000000000000", True),
        ("small", b"0.300000000000001", False),
        ("large", b"12345678901234567", True),
        ("large", b"12345678901234568", False),
        ("large", b"12345678901234567.000000000000001", False),
    ):
        tree = b'{"attribute":"%b","condition":"equals","value":%b}' % (name.encode(), value)
        body = b'{"name":"n","membership_type":"dynamic","rule_tree":%b}' % tree
        group = (await admin.post(f"{GROUPS}/", body, 201)).body.id
        path = f"{GROUPS}/{group}/members/{P1}/explain/"
        assert [(name, value, expected)] == [
            (name, value, leaf.result) for leaf in (await admin.get(path)).body.tree
        ]


async def test_another_tree_replaces_the_one_before(api: Api, admin: Client) -> None:
    await have(admin, P1, plan="pro")
    await have(admin, P2, plan="free")
    group = await dynamic(admin)
    await work(api.store, grace_us=0)
    free = PRO | {"value": "free"}

    body = (await admin.patch(f"{GROUPS}/{group}/", {"rule_tree": free})).plain

    assert (free, "building") == (body["rule_tree"], body["status"]["state"])
    await work(api.store, grace_us=0)
    assert [P2] == await members(admin, group)
    both = {"operator": "OR", "children": [PRO, free]}
    put = {"name": "m", "membership_type": "dynamic", "rule_tree": both}
    answer = await admin.call("PUT", f"{GROUPS}/{group}/", put, status=200)
    assert both == answer.plain["rule_tree"]
    await work(api.store, grace_us=0)
    assert sorted([P1, P2]) == await members(admin, group)


async def test_what_is_changed_beside_the_tree_leaves_it_as_it_is(api: Api, admin: Client) -> None:
    group = await dynamic(admin)
    await work(api.store, grace_us=0)
    path = f"{GROUPS}/{group}/"

    for change in (
        {"name": "m"},
        {"description": "d", "attributes": [{"key": "k", "value": "v"}], "custom_id": "c"},
        {"membership_type": "dynamic"},
        {},
    ):
        body = (await admin.patch(path, change)).plain
        assert (PRO, "ready") == (body["rule_tree"], body["status"]["state"])
        assert change == {name: body[name] for name in change}


async def test_who_wrote_a_group_is_kept(api: Api, admin: Client) -> None:
    application = await api.store.registry.application("demo")
    assert application is not None
    env = application.production
    writer = await api.client("groups:read", "groups:write")

    for group in (await dynamic(admin), await admin.group()):
        made = await api.store.groups.get_group(env, group)
        await writer.patch(f"{GROUPS}/{group}/", {"name": "m"})
        changed = await api.store.groups.get_group(env, group)

        assert ("admin", "admin") == (made.created_by, made.modified_by)
        assert ("admin", "test") == (changed.created_by, changed.modified_by)


# --- what is refused

KINDS: list[tuple[dict[str, Any], str]] = [
    ({"membership_type": "dynamic"}, "a dynamic group needs a rule tree - at `$.rule_tree`"),
    (
        {"membership_type": "dynamic", "rule_tree": None},
        "a dynamic group needs a rule tree - at `$.rule_tree`",
    ),
    ({"rule_tree": PRO}, "only a dynamic group has a rule tree"),
    ({"membership_type": "static", "rule_tree": PRO}, "only a dynamic group has a rule tree"),
    ({"membership_type": "odd"}, "There are: static, dynamic"),
    ({"membership_type": None, "rule_tree": PRO}, "$.membership_type"),
    ({"membership_type": "dynamic", "rule_tree": PRO, "status": {}}, "unknown field `status`"),
]


@pytest.mark.parametrize(("fields", "expected"), KINDS)
async def test_a_group_is_of_one_kind(admin: Client, fields: dict[str, Any], expected: str) -> None:
    for path in (f"{GROUPS}/", f"{GROUPS}/mine/"):
        answer = await admin.post(path, {"name": "n", **fields}, 400)
        assert expected in str(answer.body)
    assert [] == await groups(admin)


async def test_the_kind_of_a_group_never_changes(admin: Client) -> None:
    static, dynamic_one = await admin.group("s"), await dynamic(admin, name="d")
    before = await groups(admin)

    for group, fields, expected in (
        (static, {"membership_type": "dynamic"}, "this one is `static` - at `$.membership_type`"),
        (static, {"membership_type": "dynamic", "rule_tree": PRO}, "at `$.membership_type`"),
        (static, {"rule_tree": PRO}, "only a dynamic group has a rule tree"),
        (dynamic_one, {"membership_type": "static"}, "this one is `dynamic` - at"),
        (dynamic_one, {"rule_tree": None}, "a dynamic group has a rule tree"),
    ):
        for method in ("PATCH", "PUT"):
            answer = await admin.call(
                method, f"{GROUPS}/{group}/", {"name": "other", **fields}, status=400
            )
            assert expected in str(answer.body), fields
    assert before == await groups(admin)
    for method in ("PATCH", "PUT"):
        same = {"name": "s", "membership_type": "static", "rule_tree": None}
        await admin.call(method, f"{GROUPS}/{static}/", same, status=200)


def below(node: object) -> dict[str, Any]:
    """Put a node into a tree, where its place is `$.rule_tree.children[0].children[1]`."""
    inner = {"operator": "OR", "children": [PRO, node]}
    return {"operator": "AND", "children": [inner, PRO]}


BAD_NODES: list[tuple[object, str, str]] = [
    (PRO | {"condition": "resembles"}, ".condition", "`resembles` is no condition"),
    (PRO | {"condition": None}, ".condition", "is no condition"),
    ({"operator": "XOR", "children": [PRO]}, ".operator", "`XOR` is no operator"),
    ({"operator": "AND", "children": []}, ".children", "one node or more"),
    ({"operator": "AND", "children": PRO}, ".children", "one node or more"),
    ({"operator": "NOT", "children": [PRO, PRO]}, ".children", "`NOT` has one child"),
    ({"operator": "AND"}, "", "`children` is missing"),
    (PRO | {"condition": "greater_than"}, ".value", "A number of at most 30 digits"),
    (
        PRO | {"condition": "greater_than", "value": 1e300},
        ".value",
        "A number of at most 30 digits",
    ),
    (PRO | {"condition": "contains", "value": 5}, ".value", "A text is wanted"),
    (PRO | {"condition": "between", "value": [1, 2, 3]}, ".value", "two values"),
    (
        PRO | {"condition": "between", "value": [1, "x"]},
        ".value[1]",
        "A number of at most 30 digits",
    ),
    (PRO | {"condition": "in_list", "value": []}, ".value", "an array of one type"),
    (PRO | {"condition": "in_list", "value": ["a"] * 1001}, ".value", "1 to 1,000 values"),
    (PRO | {"condition": "in_list", "value": ["a", 1]}, ".value[1]", "A text is wanted"),
    (PRO | {"condition": "before", "value": "tomorrow"}, ".value", "A date of ISO 8601"),
    (PRO | {"condition": "within_last_days", "value": 0}, ".value", "A whole number of days"),
    (PRO | {"condition": "pattern", "value": "*" * 257}, ".value", "at most 256 characters"),
    (PRO | {"condition": "exists"}, ".value", "takes no value"),
    ({"attribute": "plan", "condition": "is"}, "", "needs a `value`"),
    (PRO | {"type": "colour"}, ".type", "is no type"),
    (PRO | {"type": "list"}, ".type", "not list"),
    (PRO | {"attribute": ""}, ".attribute", "1 to 256 characters"),
    (PRO | {"attribute": 5}, ".attribute", "1 to 256 characters"),
    (PRO | {"attribute": "a\0b"}, ".attribute", "without NUL"),
    (PRO | {"weight": 1}, "", "There is no field `weight`"),
    ({"attribute": "plan"}, "", "`condition` is missing"),
    ({"group": 5}, ".group", "The id or custom id of a group"),
    ({"group": ""}, ".group", "The id or custom id of a group"),
    ({"group": P3}, ".group", "group"),
    ({"group": "nobody"}, ".group", "group"),
    ({"group": "dynamic"}, ".group", "dynamic"),
    ({}, "", "A node has"),
    ([], "", "A node has"),
    (None, "", "A node has"),
    (True, "", "A node has"),
    (PRO | {"value": {"a": 1}}, ".value", "`equals` takes"),
    (PRO | {"value": None}, ".value", "`equals` takes"),
]


@pytest.mark.parametrize(("node", "where", "expected"), BAD_NODES)
async def test_a_bad_tree_is_refused_with_its_place_and_nothing_changes(
    admin: Client, node: object, where: str, expected: str
) -> None:
    kept = await dynamic(admin, name="kept", custom_id="dynamic")
    before = await groups(admin)
    tree = below(node)
    new = {"name": "n", "membership_type": "dynamic", "rule_tree": tree}

    for answer in (
        await admin.post(f"{GROUPS}/", new, 400),
        await admin.post(f"{GROUPS}/mine/", new, 400),
        await admin.patch(f"{GROUPS}/{kept}/", {"name": "n", "rule_tree": tree}, 400),
        await admin.call("PUT", f"{GROUPS}/{kept}/", {"name": "n", "rule_tree": tree}, status=400),
        await admin.post(f"{GROUPS}/preview/", {"rule_tree": tree}, 400),
    ):
        [said] = answer.body["rule_tree"]
        assert f" - at `$.rule_tree.children[0].children[1]{where}`" in said
        assert expected in said
    assert before == await groups(admin)


async def test_a_group_of_another_application_is_no_leaf(api: Api, admin: Client) -> None:
    await api.store.registry.create_application("second")
    both = await api.client("admin", applications=("demo", "second"))
    foreign = (
        await both.post("/api/v1/applications/second/profile-groups/", {"name": "n"}, 201)
    ).body.id
    nobodys = str(uuid.uuid4())

    said = []
    for group in (foreign, nobodys):
        new = {"name": "n", "membership_type": "dynamic", "rule_tree": below({"group": group})}
        answer = await admin.post(f"{GROUPS}/", new, 400)
        said.append(answer.body["rule_tree"][0].replace(group, "?"))

    assert said[0] == said[1]


def nested(levels: int) -> bytes:
    leaf = json.dumps(PRO).encode()
    return b'{"operator":"NOT","children":[' * levels + leaf + b"]}" * levels


LEAF = json.dumps(PRO, separators=(",", ":")).encode()
HOSTILE = {
    "a level too deep": (nested(8), "at most 8 levels"),
    "100 levels": (nested(100), "at most 8 levels"),
    "100,000 levels": (nested(100_000), "nested too deeply"),
    "arrays without end": (b"[" * 100_000, "nested too deeply"),
    "a node too many": (
        b'{"operator":"OR","children":[' + b",".join([LEAF] * 200) + b"]}",
        "at most 200 nodes, and this is one more - at `$.rule_tree.children[199]`",
    ),
    "8 MB of nodes": (
        b'{"operator":"OR","children":[' + b",".join([LEAF] * 140_000) + b"]}",
        "at most 32,768 bytes",
    ),
    "empty arrays": (b"[" + b",".join([b"[]"] * 40_000) + b"]", "an array - at `$.rule_tree`"),
    "a text too long": (
        b'{"attribute":"a","condition":"is","value":"%b"}' % (b"x" * TREE_BYTES),
        "at most 32,768 bytes",
    ),
    "blanks alone": (b" " * 2 * SENT_BYTES + LEAF + b" " * SENT_BYTES, ""),
    "an exponent": (
        b'{"attribute":"a","condition":"is","value":1e999999}',
        "A number of at most 30 digits",
    ),
    "an exponent beyond": (
        b'{"attribute":"a","condition":"is","value":-1e-99999999999999999999}',
        "A number of at most 30 digits",
    ),
    "a million digits": (
        b'{"attribute":"a","condition":"is","value":%b}' % (b"1" * 1_000_000),
        "at most 32,768 bytes",
    ),
    "thousands of digits": (
        b'{"attribute":"a","condition":"is","value":%b}' % (b"1" * 20_000),
        "too many digits - at `$.rule_tree`",
    ),
    "thousands of decimals": (
        b'{"attribute":"a","condition":"is","value":0.%b}' % (b"1" * 20_000),
        "A number of at most 30 digits",
    ),
    "no UTF-8": (b'{"attribute":"a","condition":"is","value":"\xff"}', "not valid UTF-8"),
    "half a character": (
        b'{"attribute":"a","condition":"is","value":"\\ud800"}',
        "half of a surrogate pair",
    ),
    "half a name": (b'{"attribute":"\\ud800\\u0041","condition":"exists"}', "surrogate"),
    "no JSON": (b'{"attribute":"a",}', "not JSON"),
    "no number": (b'{"attribute":"a","condition":"is","value":NaN}', "not JSON"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_tree_is_400_at_once(admin: Client, name: str) -> None:
    tree, expected = HOSTILE[name]
    kept = await dynamic(admin, name="kept")
    before = await groups(admin)
    if not expected:
        # What was sent around a tree is no part of it.
        body = b'{"name":"n","membership_type":"dynamic","rule_tree":%b}' % tree
        await admin.post(f"{GROUPS}/", body, 201)
        return

    for method, path, rest in (
        ("POST", f"{GROUPS}/", b'"name":"n","membership_type":"dynamic",'),
        ("PATCH", f"{GROUPS}/{kept}/", b""),
        ("POST", f"{GROUPS}/preview/", b""),
    ):
        begun = time.perf_counter()
        answer = await admin.call(method, path, b'{%b"rule_tree":%b}' % (rest, tree), status=400)
        assert time.perf_counter() - begun < 3
        assert expected in str(answer.body)
    assert before == await groups(admin)


async def test_a_tree_may_be_sent_with_blanks_and_escapes(admin: Client) -> None:
    leaves = [PRO | {"value": "ä" * 50} for _ in range(199)]
    tree = {"operator": "OR", "children": leaves}
    sent = json.dumps(tree, indent=1)
    assert len(msgspec.json.encode(tree)) < TREE_BYTES < len(sent) < SENT_BYTES

    body = f'{{"name":"n","membership_type":"dynamic","rule_tree":{sent}}}'
    assert tree == (await admin.post(f"{GROUPS}/", body, 201)).plain["rule_tree"]


async def test_there_are_as_many_dynamic_groups_as_the_setting_allows(
    api: Api, admin: Client
) -> None:
    await api.store.registry.update_application("demo", dynamic_groups=2)
    first = await dynamic(admin)
    await dynamic(admin)

    answer = await admin.post(
        f"{GROUPS}/", {"name": "n", "membership_type": "dynamic", "rule_tree": PRO}, 409
    )

    assert "2" in answer.body.detail
    await admin.group()
    await admin.delete(f"{GROUPS}/{first}/")
    await dynamic(admin)


async def test_of_two_that_want_one_custom_id_one_gets_it(api: Api, admin: Client) -> None:
    new = {"name": "n", "custom_id": "c", "membership_type": "dynamic", "rule_tree": PRO}

    answers = await asyncio.gather(*(admin.call("POST", f"{GROUPS}/", new) for _ in range(5)))

    assert [201, 409, 409, 409, 409] == sorted(each.status for each in answers)
    await work(api.store, grace_us=0)
    assert [("n", PRO, "ready")] == [
        (name, tree, status["state"]) for name, tree, status in await groups(admin)
    ]


async def test_two_at_once_change_a_tree_and_one_of_them_wins_whole(
    api: Api, admin: Client
) -> None:
    for number in range(10):
        await have(admin, str(uuid.UUID(int=number + 1)), plan=f"{number}")
    group = await dynamic(admin)
    trees = [PRO | {"value": f"{number}"} for number in range(10)]

    answers = await asyncio.gather(
        *(admin.call("PATCH", f"{GROUPS}/{group}/", {"rule_tree": tree}) for tree in trees)
    )

    assert {200} == {each.status for each in answers}
    await work(api.store, grace_us=0)
    body = (await admin.get(f"{GROUPS}/{group}/")).plain
    assert body["rule_tree"] in trees
    winner = str(uuid.UUID(int=trees.index(body["rule_tree"]) + 1))
    assert ([winner], "ready", 1) == (
        await members(admin, group),
        body["status"]["state"],
        body["profile_count"],
    )


# --- its members follow its rule tree, and nothing else


@pytest.fixture
async def pros(api: Api, admin: Client) -> str:
    """A dynamic group whose members are P1 and P2, and not P3."""
    await have(admin, P1, plan="pro")
    await have(admin, P2, plan="Pro")
    await have(admin, P3, plan="free")
    group = await dynamic(admin, custom_id="pros", attributes=[{"key": "tier", "value": "1"}])
    await work(api.store, grace_us=0)
    return group


WRITES: list[tuple[str, str, object]] = [
    ("POST", "", {"profile_ids": [P3]}),
    ("POST", "", {"profile_ids": []}),
    ("POST", "", {"profile_ids": ["x"]}),
    ("POST", "", {"custom_ids": ["new"]}),
    ("PUT", "", {"profile_ids": [P3]}),
    ("PUT", "", {"profile_ids": []}),
    ("PUT", "", {"custom_ids": ["new"]}),
    ("DELETE", "", {"profile_ids": [P1]}),
    ("DELETE", "", {"profile_ids": []}),
    ("DELETE", "", {"custom_ids": ["new"]}),
    ("DELETE", f"{P1}/", None),
    ("DELETE", f"{P3}/", None),
    ("DELETE", "new/", None),
]


@pytest.mark.parametrize(("method", "below", "body"), WRITES)
async def test_members_of_a_dynamic_group_cannot_be_written(
    valkey: backings.Server, admin: Client, pros: str, method: str, below: str, body: object
) -> None:
    for gid in (pros, "pros"):
        answer = await admin.call(method, f"{GROUPS}/{gid}/members/{below}", body, status=409)
        assert (FOLLOWS, "conflict") == (answer.body.detail, answer.body.error_code)
    # And by a process that has not heard of the group.
    async with opened(valkey.url) as other:
        await other.admin.call(method, f"{GROUPS}/{pros}/members/{below}", body, status=409)

    assert sorted([P1, P2]) == await members(admin, pros)
    check = {"pairs": [{"custom_id": "new", "group_id": pros}]}
    assert [False] == (await admin.post(f"{DEMO}/memberships/check/", check)).body.results
    await admin.get("/api/v1/profiles/new/?client_id=demo", 404)


async def test_lines_of_a_dynamic_group_fail_alone(admin: Client, pros: str) -> None:
    static = await admin.group(custom_id="static")
    lines: list[dict[str, Any]] = [
        {"op": "add", "group_id": pros, "profile_id": P3},
        {"op": "add", "group_id": static, "profile_id": P3},
        {"op": "remove", "group_id": "pros", "profile_id": P1},
        {"op": "add", "group_id": "pros", "custom_id": "new"},
        {"op": "remove", "group_id": "pros", "custom_id": "new"},
        {"op": "add", "group_id": "static", "custom_id": "other"},
        {"op": "add", "group_id": "gone", "profile_id": P3},
    ]
    sent = b"\n".join(map(msgspec.json.encode, lines))

    answer = await admin.post(BULK, sent)

    *failures, last = answer.body
    assert [
        *({"line": line, "status": "invalid", "detail": FOLLOWS} for line in (1, 3, 4, 5)),
        {"line": 7, "status": "invalid", "detail": "Not found."},
    ] == failures
    assert (7, 2, 5) == (last["lines"], last["added"], last["failed"])
    assert sorted([P1, P2]) == await members(admin, pros)
    await admin.get("/api/v1/profiles/new/?client_id=demo", 404)
    all_results = (await admin.post(f"{BULK}?results=all", sent)).body
    assert ["invalid", "already_added", "invalid"] == [each["status"] for each in all_results[:3]]


async def test_lines_of_an_inactive_dynamic_group_tell_nothing_of_it(
    admin: Client, pros: str
) -> None:
    await admin.patch(f"{GROUPS}/{pros}/", {"is_active": False})
    line = {"op": "add", "group_id": pros, "profile_id": P3}

    failure, _ = (await admin.post(BULK, msgspec.json.encode(line))).body

    assert failure == {"line": 1, "status": "invalid", "detail": "Not found."}


REMADE: dict[str, tuple[str, str, object]] = {
    "add": ("POST", "members/", {"profile_ids": [P3]}),
    "add by custom id": ("POST", "members/", {"custom_ids": ["new"]}),
    "replace": ("PUT", "members/", {"profile_ids": [P3]}),
    "remove": ("DELETE", "members/", {"profile_ids": [P1]}),
    "remove one": ("DELETE", f"members/{P1}/", None),
}


async def remade(api: Api, group: str) -> None:
    """Delete a static group and make a dynamic one of its id, of which the process did not hear."""
    application = await api.store.registry.application("demo")
    assert application is not None
    env = application.production
    old = await api.store.groups.number_of(env, group)
    await api.admin.delete(f"{GROUPS}/{group}/")
    new = {"name": "n", "membership_type": "dynamic", "rule_tree": PRO}
    await api.admin.post(f"{GROUPS}/{group}/", new, 201)
    known = api.store.cache.directory(env.directory)
    known.forget_all()
    known.keep_number(uuid.UUID(group).bytes, old)


@pytest.mark.parametrize("name", REMADE)
async def test_a_static_group_that_was_made_anew_as_a_dynamic_one_is_not_written(
    api: Api, admin: Client, name: str
) -> None:
    method, below, body = REMADE[name]
    group = await admin.group()
    await remade(api, group)

    answer = await admin.call(method, f"{GROUPS}/{group}/{below}", body, status=409)

    assert answer.body.detail == FOLLOWS
    assert [] == await members(admin, group)


async def test_lines_of_such_a_group_fail_alone(api: Api, admin: Client) -> None:
    group = await admin.group()
    await remade(api, group)
    line = {"op": "add", "group_id": group, "profile_id": P3}

    failure, _ = (await admin.post(BULK, msgspec.json.encode(line))).body

    assert failure == {"line": 1, "status": "invalid", "detail": FOLLOWS}


async def test_a_write_is_followed_before_it_is_answered(admin: Client, pros: str) -> None:
    for plan, expected in (("pro", True), ("free", False), ("PRO", True)):
        await have(admin, P3, plan=plan)
        pairs = {"pairs": [{"profile_id": P3, "group_id": pros}]}
        check = await admin.post(f"{DEMO}/memberships/check/", pairs)
        assert [expected] == check.body.results
        assert expected == (P3 in await members(admin, pros))


async def test_a_static_membership_moves_a_dynamic_one(api: Api, admin: Client) -> None:
    vip = await admin.group(custom_id="vip")
    guests = await dynamic(
        admin,
        {"operator": "AND", "children": [{"group": "vip"}, PRO]},
    )
    await have(admin, P1, plan="pro")
    await work(api.store, grace_us=0)
    assert [] == await members(admin, guests)

    await admin.post(f"{GROUPS}/vip/members/", {"profile_ids": [P1, P2]})
    assert [P1] == await members(admin, guests)
    await admin.delete(f"{GROUPS}/{vip}/members/{P1}/")
    assert [] == await members(admin, guests)
    line = {"op": "add", "group_id": "vip", "profile_id": P1}
    await admin.post(BULK, msgspec.json.encode(line))
    assert [P1] == await members(admin, guests)
    await admin.call("PUT", f"{GROUPS}/vip/members/", {"profile_ids": []}, status=200)
    assert [] == await members(admin, guests)


# --- it looks like any other group


async def test_its_members_are_listed_counted_checked_and_read_like_any_others(
    admin: Client, pros: str
) -> None:
    path = f"{GROUPS}/pros/members/"
    pages = await admin.walk(f"{path}?page_size=1")

    assert [2, 2] == [page.count for page in pages]
    assert sorted([P1, P2]) == sorted(page.results[0].id for page in pages)
    assert pages[0].results == (await admin.get(pages[1].previous)).body.results
    only = (await admin.get(f"{path}?profile_id={P2}&profile_id={P3}&fields=id")).plain
    assert (1, [{"id": P2}]) == (only["count"], only["results"])
    assert P1 == (await admin.get(f"{path}{P1}/")).body.id
    await admin.get(f"{path}{P3}/", 404)
    pairs = [{"profile_id": each, "group_id": gid} for each in (P1, P3) for gid in (pros, "pros")]
    for some in (pairs, pairs[:1], pairs[2:3]):
        check = await admin.post(f"{DEMO}/memberships/check/", {"pairs": some})
        assert [each["profile_id"] == P1 for each in some] == check.body.results
    assert (await admin.get(f"{GROUPS}/pros/")).body.profile_count == 2


async def test_it_is_among_the_groups_of_a_profile_with_all_their_filters(
    admin: Client, pros: str
) -> None:
    static = await admin.group("static", attributes=[{"key": "tier", "value": "2"}])
    await admin.post(f"{GROUPS}/{static}/members/", {"profile_ids": [P1]})
    path = f"{DEMO}/profiles/{P1}/profile-groups/"

    for query, expected in {
        "": [pros, static],
        "?attributes=tier": [pros, static],
        "?attributes=tier:1": [pros],
        "?membership_type=dynamic": [pros],
        "?membership_type=static": [static],
        "?membership_type=dynamic&attributes=tier:2": [],
        "?custom_id=pros": [pros],
        "?name=static": [static],
        "?ordering=-created_at": [static, pros],
    }.items():
        page = (await admin.get(path + query)).body
        assert (expected, len(expected)) == ([row.group_id for row in page.results], page.count)
    [row] = (await admin.get(f"{path}?membership_type=dynamic")).plain["results"]
    assert {
        "group_id": pros,
        "group_name": "Group",
        "profile_count": 2,
        "is_active": True,
        "custom_id": "pros",
    } == {name: value for name, value in row.items() if name != "created_at"}


async def test_it_is_in_lists_of_groups_with_all_their_filters(admin: Client, pros: str) -> None:
    static = await admin.group("static", attributes=[{"key": "tier", "value": "2"}])

    for query, expected in {
        "": [pros, static],
        "?attributes=tier:1": [pros],
        "?membership_type=dynamic": [pros],
        "?membership_type=dynamic&attributes=tier:2": [],
        "?membership_type=static": [static],
        "?name=Group": [pros],
        "?custom_id=pros&membership_type=dynamic": [pros],
        "?custom_id=pros&membership_type=static": [],
    }.items():
        page = (await admin.get(f"{GROUPS}/{query}")).body
        assert (query, expected) == (query, [group.id for group in page.results])
        assert (query, len(expected)) == (query, page.count)


async def test_fields_of_a_list_are_those_asked_for_where_a_group_has_them(
    admin: Client, pros: str
) -> None:
    await admin.group("static")

    async def rows(fields: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await admin.get(f"{GROUPS}/?fields={fields}")).plain[
            "results"
        ]
        return found

    assert [
        {"id": pros, "membership_type": "dynamic", "rule_tree": PRO, "profile_count": 2},
        {"membership_type": "static", "profile_count": 0},
    ] == [
        {name: value for name, value in row.items() if name != "id" or value == pros}
        for row in await rows("id,membership_type,rule_tree,profile_count")
    ]
    [with_status, without] = await rows("status")
    assert ("ready", {}) == (with_status["status"]["state"], without)
    answer = await admin.get(f"{GROUPS}/?fields=rule", 400)
    assert "rule_tree, status" in answer.body["fields"][0]


async def test_an_inactive_dynamic_group_is_404_everywhere_and_goes_on_following(
    admin: Client, pros: str
) -> None:
    body = (await admin.patch(f"{GROUPS}/{pros}/", {"is_active": False})).plain

    assert (False, 2, PRO) == (body["is_active"], body["profile_count"], body["rule_tree"])
    await everywhere_404(admin, pros)
    for answer in (
        await admin.get(f"{GROUPS}/{pros}/members/{P1}/explain/", 404),
        await admin.post(f"{GROUPS}/pros/", {"name": "n"}, 409),
    ):
        assert answer.body.error_code in ("not_found", "conflict")
    await admin.post(f"{GROUPS}/preview/", {"rule_tree": PRO, "group_id": pros}, 400)
    await have(admin, P3, plan="pro")
    await have(admin, P1, plan="free")
    known = "?include_inactive=true"
    assert sorted([P2, P3]) == await members(admin, pros, known)
    found = (await admin.get(f"{GROUPS}/{pros}/members/{P1}/explain/{known}")).body
    assert (False, [False]) == (found.member, [leaf.result for leaf in found.tree])

    await admin.patch(f"{GROUPS}/{pros}/{known}", {"is_active": True})

    assert sorted([P2, P3]) == await members(admin, pros)
    assert (await admin.get(f"{GROUPS}/{pros}/")).body.profile_count == 2


async def test_a_deleted_dynamic_group_is_gone_everywhere(
    api: Api, admin: Client, pros: str
) -> None:
    await admin.delete(f"{GROUPS}/{pros}/")

    await everywhere_404(admin, pros)
    await have(admin, P3, plan="pro")
    again = await dynamic(admin, custom_id="pros")
    await work(api.store, grace_us=0)
    assert sorted([P1, P2, P3]) == await members(admin, again)


async def test_a_group_that_a_rule_names_cannot_be_deleted(admin: Client) -> None:
    vip = await admin.group(custom_id="vip")
    tree = {"operator": "NOT", "children": [{"group": "vip"}]}
    named = [await dynamic(admin, tree) for _ in range(6)]

    for gid in (vip, "vip"):
        answer = await admin.call("DELETE", f"{GROUPS}/{gid}/", status=409)
        assert answer.body.error_code == "conflict"
        assert sum(each in answer.body.detail for each in named) == 5
    assert vip == (await admin.get(f"{GROUPS}/vip/")).body.id
    for each in named[:5]:
        await admin.delete(f"{GROUPS}/{each}/")
    answer = await admin.call("DELETE", f"{GROUPS}/{vip}/", status=409)
    assert named[5] in answer.body.detail
    await admin.patch(f"{GROUPS}/{named[5]}/", {"rule_tree": PRO})
    await admin.delete(f"{GROUPS}/{vip}/")
    await everywhere_404(admin, vip)


async def test_a_leaf_follows_memberships_whether_its_group_is_active_or_not(
    api: Api, admin: Client
) -> None:
    await admin.group(custom_id="vip")
    await admin.post(f"{GROUPS}/vip/members/", {"profile_ids": [P1]})
    group = await dynamic(admin, {"group": "vip"})
    await work(api.store, grace_us=0)

    await admin.patch(f"{GROUPS}/vip/", {"is_active": False})

    assert [P1] == await members(admin, group)


# --- explain and preview


async def test_an_explanation_has_every_leaf_in_order(api: Api, admin: Client) -> None:
    vip = await admin.group(custom_id="vip")
    await admin.post(f"{GROUPS}/vip/members/", {"custom_ids": ["alice"]})
    alice = (await admin.get("/api/v1/profiles/alice/?client_id=demo")).body.id
    await have(admin, alice, plan="Pro", seats="12.5")
    leaves: list[dict[str, Any]] = [
        PRO,
        {"attribute": "seats", "condition": "between", "value": [1.5, 12]},
        {"attribute": "colour", "condition": "not_exists"},
        {"group": vip},
    ]
    no_colour = {"operator": "NOT", "children": [{"operator": "NOT", "children": [leaves[2]]}]}
    tree = {"operator": "OR", "children": [*leaves[:2], no_colour, leaves[3]]}
    group = await dynamic(admin, tree, custom_id="g")
    await work(api.store, grace_us=0)

    found = (await admin.get(f"{GROUPS}/g/members/alice/explain/")).plain

    assert found == {
        "member": True,
        "tree": [
            {"leaf": leaves[0], "value": "Pro", "result": True},
            {"leaf": leaves[1], "value": "12.5", "result": False},
            {"leaf": leaves[2], "value": None, "result": True},
            {"leaf": leaves[3], "value": True, "result": True},
        ],
    }
    for pid in (alice, "alice", "custom_id:alice"):
        assert found == (await admin.get(f"{GROUPS}/{group}/members/{pid}/explain/")).plain
    nobody = (await admin.get(f"{GROUPS}/g/members/{P1}/explain/")).body
    assert (False, [False, False, True, False]) == (
        nobody.member,
        [leaf.result for leaf in nobody.tree],
    )


async def test_the_tree_of_a_static_group_is_empty(admin: Client) -> None:
    group = await admin.group()
    await admin.post(f"{GROUPS}/{group}/members/", {"profile_ids": [P1]})

    for profile, expected in ((P1, True), (P2, False)):
        found = (await admin.get(f"{GROUPS}/{group}/members/{profile}/explain/")).plain
        assert found == {"member": expected, "tree": []}


async def test_what_is_not_there_is_not_explained(api: Api, admin: Client, pros: str) -> None:
    await admin.get(f"{GROUPS}/{pros}/members/never-heard-of/explain/", 404)
    await admin.get(f"{GROUPS}/never-heard-of/members/{P1}/explain/", 404)
    await admin.get(f"{GROUPS}/{P3}/members/{P1}/explain/", 404)
    reader = await api.client("members:read", "profiles:read")
    await reader.get(f"{GROUPS}/{pros}/members/{P1}/explain/")
    await reader.get(f"{GROUPS}/{pros}/members/{P1}/explain/?include_inactive=true", 403)
    await reader.get(f"{GROUPS}/{pros}/members/{P1}/explain/?colour=red", 400)


async def test_a_changed_tree_is_explained_by_every_process_at_once(
    valkey: backings.Server, admin: Client, pros: str
) -> None:
    async with opened(valkey.url) as other:
        path = f"{GROUPS}/{pros}/members/{P1}/explain/"
        assert [PRO] == [each["leaf"] for each in (await other.admin.get(path)).plain["tree"]]
        for value in ("a", "b", "c"):
            leaf = PRO | {"value": value}
            await admin.patch(f"{GROUPS}/{pros}/", {"rule_tree": leaf})
            found = (await other.admin.get(path)).plain
            assert [(leaf, "pro", False)] == [
                (each["leaf"], each["value"], each["result"]) for each in found["tree"]
            ]


async def test_a_preview_says_who_would_join_leave_and_stay_and_changes_nothing(
    admin: Client, pros: str
) -> None:
    before = await groups(admin)
    paying = {
        "operator": "OR",
        "children": [PRO | {"value": "free"}, {"attribute": "seats", "condition": "exists"}],
    }
    await have(admin, P2, plan="pro", seats="3")

    found = (await admin.post(f"{GROUPS}/preview/", {"rule_tree": paying, "group_id": pros})).plain

    assert found == {
        "joining": 1,
        "leaving": 1,
        "staying": 1,
        "samples": {"joining": [P3], "leaving": [P1]},
    }
    assert before == await groups(admin)
    assert sorted([P1, P2]) == await members(admin, pros)
    for group_id in ("pros", pros.upper()):
        body = {"rule_tree": paying, "group_id": group_id}
        assert found == (await admin.post(f"{GROUPS}/preview/", body)).plain
    for more in ({}, {"group_id": None}):
        alone = (await admin.post(f"{GROUPS}/preview/", {"rule_tree": PRO, **more})).plain
        assert (2, 0, 0) == (alone["joining"], alone["leaving"], alone["staying"])
        assert sorted([P1, P2]) == sorted(alone["samples"]["joining"])


async def test_a_preview_names_twenty_of_each(admin: Client) -> None:
    for number in range(25):
        await have(admin, str(uuid.UUID(int=number + 1)), plan="pro")

    found = (await admin.post(f"{GROUPS}/preview/", {"rule_tree": PRO})).body

    assert (25, 20, 20) == (
        found.joining,
        len(found.samples.joining),
        len(set(found.samples.joining)),
    )


async def test_a_preview_is_of_a_dynamic_group_that_is_there(admin: Client) -> None:
    static = await admin.group()

    for group, expected in (
        (static, "it is `static`"),
        (P1, "there is no such group"),
        ("never-heard-of", "there is no such group"),
    ):
        body = {"rule_tree": PRO, "group_id": group}
        answer = await admin.post(f"{GROUPS}/preview/", body, 400)
        assert f"{expected} - at `$.group_id`" in answer.body["group_id"][0]
    await admin.post(f"{GROUPS}/preview/", {}, 400)
    await admin.post(f"{GROUPS}/preview/", {"rule_tree": None}, 400)
    await admin.post(f"{GROUPS}/preview/", {"rule_tree": PRO, "colour": "red"}, 400)


async def test_a_group_may_be_called_as_a_path_is(admin: Client) -> None:
    """`profile-groups/preview/` is no group: one of that custom id is named as such."""
    group = await admin.group(custom_id="preview")
    await admin.post(f"{GROUPS}/preview/members/", {"profile_ids": [P1]})

    await admin.call("GET", f"{GROUPS}/preview/", status=405)
    assert group == (await admin.get(f"{GROUPS}/custom_id:preview/")).body.id
    assert [P1] == await members(admin, "preview")
    assert (await admin.get(f"{GROUPS}/preview/members/{P1}/explain/")).body.member
    await admin.delete(f"{GROUPS}/custom_id:preview/")
