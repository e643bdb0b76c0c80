"""Group definitions over HTTP: six operations, three prefixes, what is 400 and what is 422."""

from __future__ import annotations

import asyncio
import re
import time

import pytest

from service import auth
from service.errors import Unavailable
from service.grouping import AGGREGATIONS

GROUPS = "/platform/workspaces/1/groups"
PREFIXES = ("/platform", "/platform/v2", "/platform/experimental")
NEW = {
    "id": "neustar-household-group",
    "description": "A group of users related by shared Neustar household ID",
    "source_user_attribute": "neustar-household-id",
    "attributes": [{"id": "has_dog", "type": "boolean_or"}],
}
ONE = f"{GROUPS}/{NEW['id']}"
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


async def allow(api, **settings):
    """Change settings, and wait until the process knows."""
    await api.store.registry.update_application("demo", **settings)


def fields(answer, *names):
    return {name: answer.plain[name] for name in names}


async def test_a_definition_is_created_as_the_seed_says(admin):
    answer = await admin.post(GROUPS, NEW)
    made = answer.plain
    assert [*NEW, "created_on", "created_by", "last_modified_on", "last_modified_by"] == list(made)
    assert NEW == fields(answer, *NEW)
    assert made["created_on"] == made["last_modified_on"]
    assert MOMENT.fullmatch(made["created_on"])
    assert "admin" == made["created_by"] == made["last_modified_by"]


async def test_it_is_read_and_listed_as_it_was_answered(admin):
    assert [] == (await admin.get(GROUPS)).plain
    made = (await admin.post(GROUPS, NEW)).plain
    assert made == (await admin.get(ONE)).plain
    assert [made] == (await admin.get(GROUPS)).plain


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("prefix", PREFIXES)
async def test_three_prefixes_are_the_same(admin, prefix, slash):
    groups = f"{prefix}/workspaces/1/groups"
    one = f"{groups}/household{slash}"
    await admin.post(groups + slash, {"id": "household", "source_user_attribute": "a"})
    assert ["household"] == [each["id"] for each in (await admin.get(groups + slash)).plain]
    for other in PREFIXES:
        await admin.get(f"{other}/workspaces/1/groups/household{slash}")
    await admin.call("PUT", one, {"description": "d"}, status=200)
    assert (
        "queued"
        == (await admin.post(f"{groups}/household/recompute{slash}", None, 202)).plain["state"]
    )
    assert 1 == len((await admin.get(f"{prefix}/workspaces/1/jobs{slash}")).plain)
    await admin.delete(one)
    await admin.get(one, 404)


async def test_who_writes_is_named_by_the_credential(api, admin):
    credential, secret = await api.store.registry.create_credential(
        ["demo"], ["definitions:read", "definitions:write"]
    )
    token = await auth.mint(
        api.store.registry,
        applications=["demo"],
        scopes=credential.scopes,
        subject=credential.id,
        credential=credential.id,
    )
    await admin.post(GROUPS, NEW)
    other = admin.using(token)
    changed = (await other.call("PUT", ONE, {"description": "other"}, status=200)).plain
    assert ("admin", f"client_id:{credential.id}") == (
        changed["created_by"],
        changed["last_modified_by"],
    )
    assert secret not in str(changed)


async def test_a_change_merges_what_is_given_and_replaces_attributes(admin):
    made = (await admin.post(GROUPS, NEW)).plain
    await asyncio.sleep(0.002)
    attributes = [{"id": "has_dog", "type": "boolean_or"}, {"id": "country", "type": "latest"}]
    changed = (await admin.call("PUT", ONE, {"attributes": attributes}, status=200)).plain
    assert (
        made
        | {
            "attributes": attributes,
            "last_modified_on": changed["last_modified_on"],
        }
        == changed
    )
    assert changed["last_modified_on"] > made["last_modified_on"]
    body = {"description": "", "source_user_attribute": "$address", "id": "other", "x": 1}
    again = (await admin.call("PUT", ONE, body, status=200)).plain
    assert [NEW["id"], "", "$address", attributes] == [
        again[name] for name in ("id", "description", "source_user_attribute", "attributes")
    ]
    nothing = (await admin.call("PUT", ONE, {}, status=200)).plain
    assert again | {"last_modified_on": nothing["last_modified_on"]} == nothing
    cleared = await admin.call("PUT", ONE, {"attributes": [], "description": None}, status=200)
    assert {"attributes": [], "description": ""} == fields(cleared, "attributes", "description")


async def test_a_deleted_definition_is_gone_and_its_id_is_free(admin):
    await admin.post(GROUPS, NEW)
    answer = await admin.delete(ONE)
    assert b"" == answer.content
    for method, body in (("GET", None), ("PUT", {}), ("DELETE", None)):
        error = await admin.call(method, ONE, body, status=404)
        assert f"The group definition '{NEW['id']}' was not found." == error.body.detail
    await admin.post(GROUPS, NEW)


async def test_the_answer_to_a_change_names_its_job(admin):
    created = await admin.post(GROUPS, NEW)
    job = created.headers["x-belong-job"]
    found = (await admin.get(f"/platform/workspaces/1/jobs/{job}")).plain
    assert {"id": job, "state": "queued", "done": 0, "total": 0} == found
    attributes: dict[str, list[object]] = {"attributes": []}
    assert job == (await admin.call("PUT", ONE, attributes)).headers["x-belong-job"]
    assert "x-belong-job" not in (await admin.call("PUT", ONE, {"description": "d"})).headers
    assert job == (await admin.delete(ONE)).headers["x-belong-job"]


async def test_in_a_weekly_application_there_is_no_job(api, admin):
    await allow(api, grouping="weekly")
    assert "x-belong-job" not in (await admin.post(GROUPS, NEW)).headers


@pytest.mark.parametrize("kind", AGGREGATIONS)
async def test_every_aggregation_is_taken(admin, kind):
    body = NEW | {"attributes": [{"id": "x", "type": kind}]}
    assert body == fields(await admin.post(GROUPS, body), *body)


@pytest.mark.parametrize(
    "given",
    [
        {"id": "abc"},
        {"id": "x" * 32},
        {"id": "A.z_0$-9"},
        {"description": "x" * 255},
        {"description": "ü" * 255},
        {"source_user_attribute": "x"},
        {"source_user_attribute": "🐕" * 256},
        {"attributes": [{"id": "x", "type": "sum"}]},
        {"attributes": [{"id": "x" * 223, "type": "sum"}]},
        {"attributes": [{"id": f"a:b {n}", "type": "sum"} for n in range(10)]},
        {"attributes": []},
        {"another": {"field": [1]}},
    ],
    ids=lambda given: repr(given)[:40],
)
async def test_what_is_at_the_limit_is_taken(admin, given):
    expected = NEW | {name: value for name, value in given.items() if name in NEW}
    assert expected == fields(await admin.post(GROUPS, NEW | given), *NEW)


async def test_description_and_attributes_may_be_left_out(admin):
    made = await admin.post(GROUPS, {"id": "abc", "source_user_attribute": "a"})
    assert {"description": "", "attributes": []} == fields(made, "description", "attributes")


UNPROCESSABLE = [
    ({"id": "ab"}, "'id' must have 3 to 32"),
    ({"id": "x" * 33}, "'id' must have 3 to 32"),
    ({"id": ""}, "'id' must have 3 to 32"),
    ({"id": "a b c"}, "'id' must have 3 to 32"),
    ({"id": "äbc"}, "'id' must have 3 to 32"),
    ({"id": "abc\n"}, "'id' must have 3 to 32"),
    ({"id": "a/bc"}, "'id' must have 3 to 32"),
    ({"description": "x" * 256}, "'description' must have 0 to 255"),
    ({"description": "a\0"}, "'description' must not hold a NUL"),
    ({"source_user_attribute": ""}, "'source_user_attribute' must have 1 to 256"),
    ({"source_user_attribute": "x" * 257}, "'source_user_attribute' must have 1 to 256"),
    ({"source_user_attribute": "\0"}, "'source_user_attribute' must not hold a NUL"),
    ({"attributes": [{"id": "x"}]}, "'attributes[0].type' is required"),
    ({"attributes": [{"type": "sum"}]}, "'attributes[0].id' is required"),
    ({"attributes": [{}]}, "'attributes[0].id' is required"),
    ({"attributes": [{"id": "", "type": "sum"}]}, "'attributes[0].id' must have 1 to 223"),
    ({"attributes": [{"id": "x" * 224, "type": "sum"}]}, "'attributes[0].id' must have 1 to 223"),
    ({"attributes": [{"id": "a\0", "type": "sum"}]}, "'attributes[0].id' must not hold a NUL"),
    (
        {"attributes": [{"id": "x", "type": "sum"}, {"id": "y", "type": "median"}]},
        "'attributes[1].type' is 'median', which is no aggregation. There are: latest,",
    ),
    ({"attributes": [{"id": "x", "type": "Sum"}]}, "no aggregation"),
    ({"attributes": [{"id": "x", "type": "y" * 9999}]}, "no aggregation"),
    (
        {"attributes": [{"id": "x", "type": "sum"}, {"id": "x", "type": "latest"}]},
        "'attributes[1].id' must be unique",
    ),
    (
        {"attributes": [{"id": f"a{n}", "type": "sum"} for n in range(11)]},
        "at most 10 attributes",
    ),
]


@pytest.mark.parametrize(("given", "sentence"), UNPROCESSABLE, ids=lambda each: repr(each)[:40])
async def test_what_breaks_a_rule_is_422(admin, given, sentence):
    error = await admin.post(GROUPS, NEW | given, 422)
    assert sentence in error.body.detail
    assert "VALIDATION_ERROR" == error.body.error_code
    assert len(error.body.detail) < 400
    assert [] == (await admin.get(GROUPS)).plain
    if "id" not in given:
        made = (await admin.post(GROUPS, NEW)).plain
        error = await admin.call("PUT", ONE, given, status=422)
        assert sentence in error.body.detail
        assert [made] == (await admin.get(GROUPS)).plain


@pytest.mark.parametrize("missing", ["id", "source_user_attribute"])
async def test_what_is_required_and_missing_is_422(admin, missing):
    body = {name: value for name, value in NEW.items() if name != missing}
    error = await admin.post(GROUPS, body, 422)
    assert f"Field '{missing}' is required." == error.body.detail


MALFORMED = [
    b"",
    b"{",
    b"[]",
    b'"x"',
    b"null",
    b"NaN",
    b"\xff",
    b'{"source_user_attribute": ["a"]}',
    b'{"description": 1}',
    b'{"attributes": {}}',
    b'{"attributes": null}',
    b'{"attributes": ["has_dog"]}',
    b'{"attributes": [{"id": 1}]}',
    b'{"attributes": [{"id": "a", "type": 1e999999}]}',
    b"[" * 5000,
]


NEW_ALONE = [b'{"id": 12}', b'{"id": null}', b'{"id": "\\ud800abc"}']


@pytest.mark.parametrize("body", MALFORMED + NEW_ALONE, ids=lambda body: repr(body)[:30])
async def test_a_malformed_body_is_400(admin, body):
    assert "BAD_REQUEST" == (await admin.post(GROUPS, body, 400)).body.error_code


@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: repr(body)[:30])
async def test_a_malformed_change_is_400(admin, body):
    made = (await admin.post(GROUPS, NEW)).plain
    assert "BAD_REQUEST" == (await admin.call("PUT", ONE, body, status=400)).body.error_code
    assert made == (await admin.get(ONE)).plain


async def test_a_body_needs_no_content_type(admin):
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    await admin.post(GROUPS, NEW, headers=form)


async def test_a_second_definition_is_422_unless_the_setting_allows_it(api, admin):
    await admin.post(GROUPS, NEW)
    other = NEW | {"id": "other"}
    assert "at most 1 group definition" in (await admin.post(GROUPS, other, 422)).body.detail
    await allow(api, definitions_per_workspace=2)
    await admin.post(GROUPS, other)
    assert "exists already" in (await admin.post(GROUPS, other, 422)).body.detail
    assert [NEW["id"], "other"] == [each["id"] for each in (await admin.get(GROUPS)).plain]


async def test_of_many_who_create_the_same_at_once_one_succeeds(admin):
    answers = await asyncio.gather(*(admin.call("POST", GROUPS, NEW) for _ in range(8)))
    assert [200] + [422] * 7 == sorted(answer.status for answer in answers)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize("did", ["nobody", "ab", "x" * 500, "%00", "a%2Fb", "%F0%9F%90%95"])
async def test_a_definition_that_is_not_there_is_404(admin, method, did):
    await admin.call(method, f"{GROUPS}/{did}", {}, status=404)


@pytest.mark.parametrize(
    ("workspace", "status"),
    [("x", 404), ("1.0", 404), ("2", 403), ("0", 403), ("-1", 403), ("9" * 30, 403)],
)
async def test_another_workspace_is_403_and_what_is_none_404(admin, workspace, status):
    path = f"/platform/workspaces/{workspace}/groups"
    await admin.get(path, status)
    await admin.post(path, NEW, status)
    await admin.using(None).get(path, 401)


async def test_scopes_are_asked_for(api):
    reader = await api.client("definitions:read")
    writer = await api.client("definitions:write")
    assert 403 == (await reader.call("POST", GROUPS, NEW)).status
    await writer.post(GROUPS, NEW)
    assert 403 == (await writer.call("GET", GROUPS)).status
    await reader.get(ONE)
    for method, path in (("PUT", ONE), ("DELETE", ONE), ("POST", f"{ONE}/recompute")):
        assert 403 == (await reader.call(method, path, {})).status
    assert 403 == (await (await api.client("groups:write")).call("GET", GROUPS)).status


async def test_a_store_that_is_gone_is_503_and_nothing_is_half_known(api, admin, monkeypatch):
    call = api.store.connection.call

    async def cut_off(script, keys, args, **options):
        if script.name == "install_rules":
            raise Unavailable("gone")
        return await call(script, keys, args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(api.store.connection, "call", cut_off)
        error = await admin.post(GROUPS, NEW, 503)
        assert "SERVICE_UNAVAILABLE" == error.body.error_code
    # The outcome was unknown; it is what the directory says, and can be taken up from there.
    assert [NEW["id"]] == [each["id"] for each in (await admin.get(GROUPS)).plain]
    await admin.call("PUT", ONE, NEW, status=200)


async def test_methods_that_there_are_not_are_405(admin):
    assert "METHOD_NOT_ALLOWED" == (await admin.call("PATCH", ONE, {}, status=405)).body.error_code


async def test_times_are_those_of_the_change(admin):
    before = time.time()
    made = (await admin.post(GROUPS, NEW)).plain["created_on"]
    seconds = time.mktime(time.strptime(made[:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
    assert before - 1 <= seconds + int(made[20:23]) / 1000 + 0.001 <= time.time() + 1
