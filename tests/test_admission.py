"""Who may call what: the table scope x route, row by row, and two applications that probe.

The rows are made from `app.operations()`, so a new route cannot be forgotten: it needs a recipe
here, how to make a request of it that succeeds.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from base64 import b64encode
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec
import pytest

from service import app, auth, ids, signing
from service.app import operations
from service.endpoint import API, Resource, Wire, endpoint, operation_of
from service.faces import is_identity
from service.groups import NewGroup
from service.registry import SCOPES
from service.rules import parse_tree
from service.store import Store
from service.store_records import NewProfile
from tests.client import GROUPS, Api, Client, filled, opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from service.admission import TenantCall
    from service.endpoint import Operation
    from tests.backings import Server
    from tests.client import Answer


OF_WORKSPACES = "/platform/workspaces"


class World(msgspec.Struct, frozen=True):
    """What a request can name. The profile has a record and is in the group."""

    client_id: str
    group: str
    custom_group: str
    profile: str
    custom_profile: str
    created_at_us: int
    workspace: str = ""
    definition: str = ""
    instance: str = ""
    job: str = ""
    user: str = ""
    """The customer id of a user whose mpid is `mpid`, and who is in the instance."""
    mpid: str = ""
    audience: str = ""

    @property
    def id16(self) -> bytes:
        return ids.parse(self.profile) or b""


def group_body(_: World) -> object:
    return {"name": "G"}


def nothing(_: World) -> object:
    return None


def members(world: World) -> object:
    return {"profile_ids": [world.profile]}


def pairs(world: World) -> object:
    return {
        "pairs": [
            {"profile_id": world.profile, "group_id": world.group},
            {"custom_id": world.custom_profile, "group_id": world.custom_group},
        ]
    }


def lines(world: World) -> bytes:
    line = {"op": "add", "group_id": world.group, "profile_id": world.profile}
    return msgspec.json.encode(line) + b"\n"


def tree(world: World) -> object:
    return {"rule_tree": {"group": world.group}}


def query(world: World) -> object:
    return {"query": {"group": world.group}}


def nickname(_: World) -> object:
    return {"nickname": "N"}


def definition(_: World) -> object:
    return {"id": f"d{uuid.uuid4().hex[:12]}", "source_user_attribute": "$zip"}


def changes(_: World) -> object:
    return {"description": "Changed"}


def batch(world: World) -> dict[str, object]:
    return {"user_identities": {"customer_id": world.user}, "user_attributes": {"plan": "pro"}}


def batches(world: World) -> object:
    return [batch(world)]


def old_batches(world: World) -> object:
    event = {"event_type": "custom_event", "data": {"timestamp_unixtime_ms": 1700000000000}}
    return [batch(world) | {"events": [event]}]


def identity(world: World) -> object:
    return {"identity": {"type": "customer_id", "value": world.user}}


RECIPES: dict[str, Callable[[World], object]] = {
    # method and path below /api/v1 -> body
    "GET /applications/{cid}/profile": nothing,
    "POST /applications/{cid}/profile": nickname,
    "PATCH /applications/{cid}/profile": nickname,
    "GET /profiles/{pid}": nothing,
    "PATCH /profiles/{pid}": nickname,
    "DELETE /profiles/{pid}": nothing,
    "GET /applications/{cid}/profile-groups": nothing,
    "POST /applications/{cid}/profile-groups": group_body,
    "POST /applications/{cid}/profile-groups/preview": tree,
    "POST /applications/{cid}/profile-groups/query": query,
    "POST /applications/{cid}/profile-groups/{new}": group_body,
    "GET /applications/{cid}/profile-groups/{gid}": nothing,
    "PUT /applications/{cid}/profile-groups/{gid}": group_body,
    "PATCH /applications/{cid}/profile-groups/{gid}": group_body,
    "DELETE /applications/{cid}/profile-groups/{gid}": nothing,
    "GET /applications/{cid}/profile-groups/{gid}/members": nothing,
    "POST /applications/{cid}/profile-groups/{gid}/members": members,
    "PUT /applications/{cid}/profile-groups/{gid}/members": members,
    "DELETE /applications/{cid}/profile-groups/{gid}/members": members,
    "GET /applications/{cid}/profile-groups/{gid}/members/{pid}": nothing,
    "DELETE /applications/{cid}/profile-groups/{gid}/members/{pid}": nothing,
    "GET /applications/{cid}/profile-groups/{gid}/members/{pid}/explain": nothing,
    "GET /applications/{cid}/profiles/{pid}/profile-groups": nothing,
    "POST /applications/{cid}/memberships/check": pairs,
    "POST /applications/{cid}/memberships/bulk": lines,
    # And of the Group Identity face, the whole path
    "GET /platform/workspaces/{ws}/groups": nothing,
    "POST /platform/workspaces/{ws}/groups": definition,
    "GET /platform/workspaces/{ws}/groups/{did}": nothing,
    "PUT /platform/workspaces/{ws}/groups/{did}": changes,
    "DELETE /platform/workspaces/{ws}/groups/{did}": nothing,
    "GET /platform/workspaces/{ws}/groups/{did}/instances": nothing,
    "GET /platform/workspaces/{ws}/groups/{did}/instances/{iid}": nothing,
    "GET /platform/workspaces/{ws}/groups/{did}/instances/{iid}/members": nothing,
    "POST /platform/workspaces/{ws}/groups/{did}/recompute": nothing,
    "GET /platform/workspaces/{ws}/jobs": nothing,
    "GET /platform/workspaces/{ws}/jobs/{jid}": nothing,
    "GET /v1/workspace/{ws}/audiences": nothing,
    "GET /v1/audiences": nothing,
    "DELETE /v1/audiences/{aid}": nothing,
    "POST /v2/events": batch,
    "POST /v2/bulkevents": batches,
    "POST /v2/bulkevents/historical": old_batches,
    "POST /userprofile/v1/resolve/{org}/{account}/{ws}": identity,
    "GET /userprofile/v1/{org}/{account}/{ws}/{mpid}": nothing,
    "POST /userprofile/v1/{org}/{account}/{ws}/{mpid}": nothing,
}

PUBLIC = {
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
    "GET /openapi.json",
    "GET /docs",
    "GET /docs/{file}",
    "POST /oauth/token",
    "GET /api/v1/applications/{cid}",
}
"""What needs no token. Whoever adds to this has thought about it."""

ANY_TOKEN = {
    "GET /api/v1/applications/{cid}/profile",
    "PATCH /api/v1/applications/{cid}/profile",
    # Without one, too: it makes an anonymous profile then.
    "POST /api/v1/applications/{cid}/profile",
}
"""What looks at the token by itself: it is about whoever calls. Tested one by one below."""

TABLE = [
    pytest.param(method, path, operation, id=f"{method} {path}")
    for method, path, operation in operations()
]
GUARDED = [each for each in TABLE if each.values[2].scope is not None]  # type: ignore[union-attr]


def recipe(method: str, path: str, world: World) -> tuple[str, object]:
    """Make a request that succeeds, with the right token: path and body."""
    template = path.removeprefix(API).replace("{id}", "{pid}")
    if (method, template) == ("POST", "/applications/{cid}/profile-groups/{gid}"):
        template = template.replace("{gid}", "{new}")
    body = RECIPES[f"{method} {template}"](world)
    named = {
        "cid": world.client_id,
        "gid": world.group,
        "pid": world.profile,
        "new": str(uuid.uuid4()),
        "ws": world.workspace,
        "did": world.definition,
        "iid": world.instance,
        "jid": world.job,
        "mpid": world.mpid,
        "aid": world.audience,
        "org": "1",
        "account": "1",
    }
    where = template.format_map({n: quote(v, safe="") for n, v in named.items()})
    if is_identity(path):
        return where + ("?fields=user_attributes" if path.startswith("/userprofile") else ""), body
    return API + where, body


async def made(api: Api, client_id: str, path: str = "") -> World:
    """Make a group and a profile in it, all new; for a path of the Group Identity face more."""
    if is_identity(path):
        world = await made_of_users(api, client_id)
        if "{aid}" not in path:
            return world
        return msgspec.structs.replace(world, audience=await made_audience(api, client_id))
    application = await api.store.registry.application(client_id)
    assert application is not None
    custom_group, custom_profile = f"g/{uuid.uuid4().hex}", f"p/{uuid.uuid4().hex}"
    profile = await api.store.records.create_profile(
        application.production, NewProfile(custom_id=custom_profile)
    )
    assert profile.created_at_us is not None
    admin = await api.client("admin", applications=(client_id,))
    groups = f"{API}/applications/{client_id}/profile-groups"
    created = await admin.post(f"{groups}/", {"name": "G", "custom_id": custom_group}, 201)
    profile_id = ids.text(profile.id)
    await admin.post(f"{groups}/{created.body.id}/members/", {"profile_ids": [profile_id]})
    return World(
        client_id=client_id,
        group=created.body.id,
        custom_group=custom_group,
        profile=profile_id,
        custom_profile=custom_profile,
        created_at_us=profile.created_at_us,
    )


async def made_of_users(api: Api, client_id: str) -> World:
    """Make a definition and a user, who is an instance of it, all new."""
    registry = api.store.registry
    application = await registry.update_application(client_id, definitions_per_workspace=100)
    admin = await api.client("admin", applications=(client_id,))
    user, name = f"u/{uuid.uuid4().hex}", f"d{uuid.uuid4().hex[:12]}"
    groups = f"{OF_WORKSPACES}/{application.workspace_id}/groups"
    await admin.post(groups, {"id": name, "source_user_attribute": "$address"})
    who = {"user_identities": {"customer_id": user}}
    await admin.post("/v2/events", who | {"user_attributes": {"$address": user}}, 202)
    found = await admin.get(f"{groups}/{name}/instances")
    job = await admin.post(f"{groups}/{name}/recompute", None, 202)
    resolved = await admin.post(
        f"/userprofile/v1/resolve/1/1/{application.workspace_id}?fields=user_identities",
        {"identity": {"type": "customer_id", "value": user}},
    )
    [profile] = await api.store.profiles.resolve_identities(
        application.production, "customer_id", [user], create=False
    )
    assert profile is not None
    record = await api.store.records.get_profile(application.production, profile)
    return World(
        client_id=client_id,
        group="",
        custom_group="",
        profile=ids.text(profile),
        custom_profile=user,
        created_at_us=record.created_at_us or 0,
        workspace=str(application.workspace_id),
        definition=name,
        instance=found.plain["results"][0]["id"],
        job=job.plain["id"],
        user=user,
        mpid=str(resolved.plain["mpid"]),
    )


async def made_audience(api: Api, client_id: str) -> str:
    """Make a dynamic group, and give its id as an audience."""
    application = await api.store.registry.application(client_id)
    assert application is not None
    env = application.production
    rule = parse_tree({"attribute": "plan", "condition": "exists"})
    new = NewGroup(name="A", membership_type="dynamic", rule_tree=rule)
    group = await api.store.groups.create_group(env, new)
    return str(ids.audience_id(env.number, group.number))


async def profile_client(api: Api, world: World) -> Client:
    """Give a client with the token of the world's profile."""
    application = await api.store.registry.application(world.client_id)
    assert application is not None
    return api.admin.using(signing.profile_token(application, world.id16, world.created_at_us))


async def call(client: Client, method: str, path: str, world: World) -> Answer:
    where, body = recipe(method, path, world)
    return await client.call(method, where, body)


def test_every_operation_has_a_scope_or_is_known_to_need_none() -> None:
    found = {f"{method} {path}" for method, path, operation in operations() if not operation.scope}

    assert found == PUBLIC | ANY_TOKEN


def test_every_recipe_is_of_an_operation() -> None:
    found = {
        f"{method} {path.removeprefix(API)}".replace("{id}", "{pid}")
        for method, path, _ in operations()
    }
    recipes = {name.replace("{new}", "{gid}") for name in RECIPES} - {"GET /probe"}

    assert set() == recipes - found


def test_every_scope_of_an_operation_is_one_that_a_credential_can_have() -> None:
    found = [(operation.scope, *operation.also) for _, _, operation in operations()]
    scopes = {scope for scopes in found for scope in scopes} - {None}

    assert set() == scopes - set(SCOPES)


async def test_what_is_public_needs_no_token(api: Api) -> None:
    credential, secret = await api.store.registry.create_credential(["demo"], ["admin"])
    form = f"grant_type=client_credentials&client_id={credential.id}&client_secret={secret}"
    for method, path, operation in operations():
        if f"{method} {path}" in PUBLIC:
            answer = await api.conductor.simulate_request(
                method,
                path.format(cid="demo", file="swagger-ui.css"),
                body=form if method == "POST" else None,
                headers={"content-type": "application/x-www-form-urlencoded"},
            )
            assert answer.status_code == operation.status, path


@pytest.mark.parametrize(("method", "path", "operation"), GUARDED)
async def test_each_scope_alone_may_do_exactly_what_the_table_says(
    api: Api, method: str, path: str, operation: Operation
) -> None:
    for scope in SCOPES:
        client = await api.client(scope)
        answer = await call(client, method, path, await made(api, "demo", path))
        lacking = next((each for each in (operation.scope, *operation.also) if each != scope), None)
        if lacking is None or scope == "admin":
            assert answer.status in (operation.status, 204), (scope, answer)
        else:
            assert answer.status == 403, (scope, answer)
            assert answer.body.detail == (
                f"This needs the scope {lacking}, which the token does not have."
            )
    enough = await api.client(operation.scope or "", *operation.also)
    answer = await call(enough, method, path, await made(api, "demo", path))
    assert answer.status in (operation.status, 204), answer
    without = [each for each in SCOPES if each not in (operation.scope, "admin")]
    everything_else = await api.client(*without)
    answer = await call(everything_else, method, path, await made(api, "demo", path))
    assert answer.status == 403


@pytest.mark.parametrize(("method", "path", "operation"), GUARDED)
async def test_without_a_token_or_with_one_that_is_none_nothing_is_done(
    api: Api, method: str, path: str, operation: Operation
) -> None:
    assert operation.scope is not None
    world = await made(api, "demo", path)
    before = await held(api, "demo")

    for token in (None, "", "x.y.z"):
        answer = await call(api.admin.using(token), method, path, world)
        assert answer.status == 401
        scheme = "Basic" if token is None and operation.wire.basic else "Bearer"
        assert answer.headers["www-authenticate"].startswith(f'{scheme} realm="belong"')
    assert before == await held(api, "demo")


@pytest.mark.parametrize(("method", "path", "operation"), GUARDED)
async def test_the_token_of_a_profile_may_do_its_own_and_nothing_else(
    api: Api, method: str, path: str, operation: Operation
) -> None:
    world, other = await made(api, "demo", path), await made(api, "demo", path)
    before = await held(api, "demo")
    own = await profile_client(api, world)

    if operation.own:
        if "{pid}" in path or "{id}" in path:
            answer = await call(own, method, path, other)
            assert (403, "permission_denied") == (answer.status, answer.body.error_code)
            assert before == await held(api, "demo")
        assert (await call(own, method, path, world)).status in (operation.status, 204)
    else:
        answer = await call(own, method, path, world)
        assert answer.status == 403
        assert answer.body.detail.startswith(
            f"This needs a token with the scope {operation.scope}. The token of a profile reads "
        )
        assert before == await held(api, "demo")


CURRENT = f"{API}/applications/demo/profile"


async def test_the_current_profile_is_for_any_token_of_the_application_and_for_no_other(
    api: Api,
) -> None:
    await api.store.registry.create_application("second")
    world, second = await made(api, "demo"), await made(api, "second")
    own = await profile_client(api, world)
    foreign = await api.client("admin", applications=("second",))

    for scope in SCOPES:
        client = await api.client(scope)
        assert (await client.get(CURRENT)).body.id != world.profile
        await client.patch(CURRENT, {"nickname": "N"}, 403)
    assert (await own.get(CURRENT)).body.id == world.profile
    assert (await own.patch(CURRENT, {"nickname": "N"})).body.nickname == "N"
    for client, status in (
        (api.admin.using(None), 401),
        (api.admin.using("x.y.z"), 401),
        (foreign, 403),
        (await profile_client(api, second), 403),
    ):
        for method in ("GET", "PATCH"):
            await client.call(method, CURRENT, {"nickname": "M"}, status=status)
            other = f"{API}/applications/never-existed/profile"
            await client.call(method, other, {"nickname": "M"}, status=status)
    assert (await own.get(CURRENT)).body.nickname == "N"


async def test_making_a_profile_takes_a_token_that_is_good_or_none(api: Api) -> None:
    await api.store.registry.create_application("second")
    world, second = await made(api, "demo"), await made(api, "second")
    for client in (
        api.admin,
        api.admin.using(None),
        api.admin.using(""),
        await api.client("groups:read"),
        await profile_client(api, world),
    ):
        found = (await client.post(CURRENT, b"", 201)).body
        assert found.id != world.profile
        made_own = api.admin.using(found.access_token)
        assert (await made_own.get(CURRENT)).body.id == found.id
    foreign = await api.client("admin", applications=("second",))
    for client, status in (
        (api.admin.using("x.y.z"), 401),
        (foreign, 403),
        (await profile_client(api, second), 403),
    ):
        await client.post(CURRENT, b"", status)


async def test_what_only_the_scope_may_say_of_a_new_profile_no_other_token_may(api: Api) -> None:
    world = await made(api, "demo")
    for body in ({"custom_id": "mine"}, {"custom_data": "x"}, {"attributes": [pair("k")]}):
        await api.admin.using(None).post(CURRENT, body, 401)
        for scope in SCOPES:
            status = 201 if scope in ("profiles:write", "admin") else 403
            answer = await (await api.client(scope)).post(CURRENT, body, status)
            if status == 201:
                id16 = ids.parse(answer.body.id) or b""
                application = await api.store.registry.application("demo")
                assert application is not None
                await api.store.profiles.erase_profile(application.production, id16)
        await (await profile_client(api, world)).post(CURRENT, body, 403)


def pair(key: str) -> dict[str, str]:
    return {"key": key, "value": "v"}


async def test_the_token_of_a_profile_ends_when_the_profile_is_erased_and_stays_so(
    api: Api,
) -> None:
    """Whoever is added under the same id afterwards is somebody else."""
    world = await made(api, "demo")
    own = await profile_client(api, world)
    await own.get(CURRENT)
    application = await api.store.registry.application("demo")
    assert application is not None

    await api.store.profiles.erase_profile(application.production, world.id16)
    for again in range(2):
        for method, path in (
            ("GET", CURRENT),
            ("PATCH", CURRENT),
            ("GET", f"{API}/profiles/{world.profile}"),
            ("PATCH", f"{API}/profiles/{world.profile}"),
            ("GET", f"{API}/applications/demo/profiles/{world.profile}/profile-groups"),
        ):
            body = {"nickname": "N"} if method == "PATCH" else None
            answer = await own.call(method, path, body, status=401)
            assert answer.body.detail == "The profile of this token was erased."
        if not again:
            group = await api.admin.group()
            members = f"{GROUPS}/{group}/members"
            await api.admin.post(members, {"profile_ids": [world.profile]})
            await api.admin.patch(f"{API}/profiles/{world.profile}", {"nickname": "Other"})


@pytest.mark.parametrize(("method", "path", "operation"), TABLE)
async def test_every_address_of_an_operation_leads_to_it(
    api: Api, method: str, path: str, operation: Operation
) -> None:
    for address in app.addresses(path):
        for slash in ("", "/"):
            where = filled(address) + slash
            answer = await api.conductor.simulate_request(method, where)
            if operation.scope is not None:
                assert answer.status_code == 401, where
            else:
                assert answer.status_code not in (404, 405), where


def test_the_group_identity_face_has_the_addresses_that_its_documents_write() -> None:
    found = {address for path, _ in app.ROUTES for address in app.addresses(path)}
    for prefix in ("/platform", "/platform/v2", "/platform/experimental"):
        assert f"{prefix}/workspaces/{{ws}}/groups" in found
        assert f"{prefix}/workspaces/{{ws}}/groups/{{did}}" in found
    assert {"/v2/events", "/events", "/v2/bulkevents", "/bulkevents"} <= found
    assert {"/v2/bulkevents/historical", "/bulkevents/historical"} <= found


# --- two applications


async def held(api: Api, client_id: str) -> object:
    """Read everything of an application that can be listed."""
    admin = await api.client("admin", applications=(client_id,))
    groups = f"{API}/applications/{client_id}/profile-groups"
    found = []
    for group in (await admin.get(f"{groups}/?page_size=1000")).body.results:
        members = (await admin.get(f"{groups}/{group.id}/members/?page_size=1000")).body.results
        found.append((group, members))
    application = await api.store.registry.application(client_id)
    assert application is not None
    definitions = f"{OF_WORKSPACES}/{application.workspace_id}/groups"
    for each in (await admin.get(definitions)).body:
        instances = (await admin.get(f"{definitions}/{each.id}/instances")).plain["results"]
        found += [(each, instance) for instance in instances]
    return found


def without(answer: Answer, *names: str) -> tuple[int, bytes]:
    """Give what can be seen of an error, but for the names that were asked for."""
    content = answer.content
    for name in filter(None, names):
        content = content.replace(name.encode(), b"?")
    return answer.status, content if answer.status >= 400 else b""


@pytest.mark.parametrize(
    ("method", "path", "operation"),
    [each for each in GUARDED if not each.values[2].wire.basic],  # type: ignore[union-attr]
)
async def test_a_foreign_application_is_403_whether_it_exists_or_not(
    api: Api, method: str, path: str, operation: Operation
) -> None:
    assert operation.scope is not None
    await api.store.registry.create_application("second")
    second = await made(api, "second", path)
    before = await held(api, "second")
    seen = set()
    mine = await made(api, "demo", path)
    for client in (api.admin, await api.client(operation.scope), await profile_client(api, mine)):
        for client_id, workspace in (("second", second.workspace), ("never-existed", "4711")):
            asked = msgspec.structs.replace(second, client_id=client_id, workspace=workspace)
            where, body = recipe(method, path, asked)
            if "{cid}" not in path and "{ws}" not in path:
                where += f"?client_id={client_id}"
            answer = await client.call(method, where, body, status=403)
            seen.add(without(answer, client_id, f"workspace {workspace}."))

    assert len(seen) == 1
    assert before == await held(api, "second")


IN_PATHS = {
    "{did}": "definition",
    "{iid}": "instance",
    "{jid}": "job",
    "{mpid}": "mpid",
    "{aid}": "audience",
}


def kinds_of(path: str) -> list[str]:
    """Give what of a world a request of this path may name."""
    if not is_identity(path):
        return ["group", "custom_group", "profile", "custom_profile"]
    return [kind for name, kind in IN_PATHS.items() if name in path] or ["user"]


NAMED = [
    pytest.param(*each.values, kind, id=f"{each.id}-{kind}")
    for each in GUARDED
    for kind in kinds_of(str(each.values[1]))
]


@pytest.mark.parametrize(("method", "path", "operation", "kind"), NAMED)
async def test_ids_of_another_application_are_as_unknown_as_those_of_nobody(
    api: Api, method: str, path: str, operation: Operation, kind: str
) -> None:
    assert operation.scope is not None
    await api.store.registry.create_application("second")
    second = await made(api, "second", path)
    before = await held(api, "second")
    unknown = uuid.uuid4().hex if kind.startswith("custom") else str(uuid.uuid4())
    unknown = {
        "mpid": "4711",
        "audience": "4711",
        "definition": "d-unknown",
        "instance": "0" * 32,
    }.get(kind, unknown)
    field = kind.removeprefix("custom_")
    seen = set()
    for named in (getattr(second, kind), unknown):
        mine = await made(api, "demo", path)
        asked = msgspec.structs.replace(mine, **{kind: named, field: named})
        answer = await call(api.admin, method, path, asked)
        mine_alone = (mine.group, mine.profile, mine.custom_group, mine.definition)
        seen.add(without(answer, named, quote(named, safe=""), *mine_alone))

    assert len(seen) == 1, seen
    assert before == await held(api, "second")


async def test_a_cursor_of_one_application_is_none_in_another(api: Api) -> None:
    await api.store.registry.create_application("second")
    both = await api.client("admin", applications=("demo", "second"))
    for client_id in ("demo", "second"):
        for _ in range(2):
            await made(api, client_id)

    page = await both.get(f"{API}/applications/second/profile-groups/?page_size=1")
    cursor = page.body.next.partition("cursor=")[2].partition("&")[0]

    answer = await both.get(f"{GROUPS}/?page_size=1&cursor={cursor}", 400)
    assert "cursor" in answer.body


# --- routes without the application in their path


class Probe(Resource):
    """A route of which it is known what it is."""

    @endpoint("profiles:read", own=True)
    async def on_get(self, call: TenantCall) -> bytes:
        """Say who was admitted, and to what."""
        found = [call.application.client_id, call.principal.caller, call.is_admin]
        return msgspec.json.encode(found)


PROBE = f"{API}/probe"
BARE = [
    pytest.param("GET", PROBE, operation_of(Probe.on_get), id=f"GET {PROBE}"),
    *(
        each
        for each in GUARDED
        if "{cid}" not in str(each.values[1]) and not is_identity(str(each.values[1]))
    ),
]
RECIPES["GET /probe"] = nothing


@pytest.fixture
async def probed(valkey: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    """An API that has the route of `Probe`, too."""
    monkeypatch.setattr(app, "ROUTES", (*app.ROUTES, (PROBE, Probe)))
    async with opened(valkey.url) as made:
        yield made


@pytest.mark.parametrize(("method", "path", "operation"), BARE)
async def test_the_application_comes_from_the_query_or_from_a_token_for_one(
    probed: Api, method: str, path: str, operation: Operation
) -> None:
    await probed.store.registry.create_application("second")
    both = await probed.client(operation.scope or "", applications=("demo", "second"))

    async def asked(client: Client, client_id: str, query: str) -> Answer:
        where, body = recipe(method, path, await made(probed, client_id))
        return await client.call(method, where + query, body)

    fine = (operation.status, 204)
    assert (await asked(probed.admin, "demo", "")).status in fine
    assert (await asked(probed.admin, "demo", "?client_id=demo")).status in fine
    assert (await asked(both, "second", "?client_id=second")).status in fine
    for query in ("", "?client_id=demo&client_id=second"):
        unsaid = await asked(both, "demo", query)
        assert (400, ["client_id"]) == (unsaid.status, list(unsaid.body))
    for query in ("?client_id=third", "?client_id=", "?client_id=%ff"):
        foreign = await asked(both, "demo", query)
        assert foreign.status == (400 if "%ff" in query else 403)


async def test_the_responder_learns_who_was_admitted_and_to_what(probed: Api) -> None:
    await probed.store.registry.create_application("second")
    world = await made(probed, "second")
    credential, _ = await probed.store.registry.create_credential(["second"], ["profiles:read"])
    of_credential = await auth.mint(
        probed.store.registry,
        applications=["second"],
        scopes=["profiles:read"],
        subject=credential.id,
        credential=credential.id,
    )

    profile = await profile_client(probed, world)
    assert ["second", f"profile:{world.profile}", False] == (await profile.get(PROBE)).plain
    credentialed = probed.admin.using(of_credential)
    assert ["second", f"credential:{credential.id}", False] == (await credentialed.get(PROBE)).plain
    assert ["demo", "subject:admin", True] == (await probed.admin.get(PROBE)).plain
    await profile.get(f"{PROBE}?client_id=demo", 403)


async def test_the_token_of_a_profile_may_call_what_is_its_own_without_a_scope(
    probed: Api,
) -> None:
    profile = await profile_client(probed, await made(probed, "demo"))

    assert 200 == (await profile.get(PROBE)).status
    assert 403 == (await (await probed.client("groups:read")).call("GET", PROBE)).status


# --- limits


async def test_requests_of_a_caller_are_limited_where_the_application_says_so(api: Api) -> None:
    await api.store.registry.update_application("demo", requests_per_second=2)
    first, second = (
        await api.client("groups:read"),
        await profile_client(api, await made_slowly(api)),
    )

    statuses = [(await first.call("GET", f"{GROUPS}/")).status for _ in range(8)]

    assert statuses[:2] == [200, 200]
    assert statuses[-1] == 429
    limited = await first.call("GET", f"{GROUPS}/", status=429)
    assert limited.body.error_code == "throttled"
    assert int(limited.headers["retry-after"]) >= 1
    # Another caller has an allowance of its own, and the foreign one never costs anything.
    assert (await second.call("GET", f"{GROUPS}/")).status == 403
    await api.store.registry.update_application("demo", requests_per_second=None)
    assert {200} == {(await first.call("GET", f"{GROUPS}/")).status for _ in range(8)}


async def made_slowly(api: Api) -> World:
    """Make a world without a request of ours, which the limit would count."""
    application: Any = await api.store.registry.application("demo")
    profile = await api.store.records.create_profile(application.production, NewProfile())
    return World("demo", "", "", ids.text(profile.id), "", profile.created_at_us or 0)


# --- the Group Identity face: by workspace, and by HTTP Basic


class ByWorkspace(Resource):
    """A route with a workspace in its path."""

    @endpoint("definitions:read")
    async def on_get(self, call: TenantCall) -> bytes:
        """Say who was admitted, and to what."""
        return admitted_as(call)


class ByCredential(Resource):
    """A route that takes HTTP Basic."""

    @endpoint("events:write", wire=Wire(basic=True))
    async def on_post(self, call: TenantCall) -> bytes:
        """Say who was admitted, and to what."""
        return admitted_as(call)


def admitted_as(call: TenantCall) -> bytes:
    return msgspec.json.encode(
        [call.application.client_id, call.environment.name, call.principal.caller]
    )


BASIC = "/v2/probe"


@pytest.fixture
async def face(valkey: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    """An API that has one route of each kind of the Group Identity face."""
    routes = ((f"{OF_WORKSPACES}/{{ws}}/probe", ByWorkspace), (BASIC, ByCredential))
    monkeypatch.setattr(app, "ROUTES", (*app.ROUTES, *routes))
    async with opened(valkey.url) as made:
        yield made


def probe(workspace: object, prefix: str = OF_WORKSPACES) -> str:
    return f"{prefix}/{workspace}/probe"


async def test_a_workspace_admits_to_its_application_under_every_prefix(face: Api) -> None:
    second = await face.store.registry.create_application("second", workspace_id=4711)
    both = await face.client("definitions:read", applications=("demo", "second"))
    demo = await face.store.registry.application("demo")
    assert demo is not None

    for prefix in ("/platform", "/platform/v2", "/platform/experimental"):
        for slash in ("", "/"):
            for application in (demo, second):
                path = f"{prefix}/workspaces/{application.workspace_id}/probe{slash}"
                expected = [application.client_id, "production", "subject:test"]
                assert expected == (await both.get(path)).plain


async def test_a_workspace_that_is_not_the_token_s_is_403_whether_it_exists_or_not(
    face: Api,
) -> None:
    second = await face.store.registry.create_application("second", workspace_id=4711)
    workspaces = (second.workspace_id, 4712, 0, -1, 2**63, 2**64, "9" * 20, "9" * 5000)
    for client in (face.admin, await face.client("groups:read")):
        seen = set()
        for workspace in workspaces:
            answer = await client.get(probe(workspace), 403)
            assert answer.body.error_code == "FORBIDDEN"
            seen.add(without(answer, f"workspace {str(workspace)[:20]}."))
        assert len(seen) == 1


@pytest.mark.parametrize(
    "text", ["x", "1.0", "+1", "%201", "1%20", "0x1", "1e0", "\u0661", "-", "1_0"]
)
async def test_a_workspace_that_is_no_integer_is_404_for_whoever_has_a_token(
    face: Api, text: str
) -> None:
    for client in (face.admin, await face.client("groups:read")):
        answer = await client.get(probe(text), 404)
        assert answer.body.error_code == "NOT_FOUND"
    for token in (None, "", "x.y.z"):
        answer = await face.admin.using(token).get(probe(text), 401)
        assert answer.body.error_code == "UNAUTHORIZED"
        assert answer.headers["www-authenticate"].startswith('Bearer realm="belong"')


async def test_a_token_without_the_scope_or_of_a_profile_is_403_in_its_own_workspace(
    face: Api,
) -> None:
    demo = await face.store.registry.application("demo")
    assert demo is not None
    path = probe(demo.workspace_id)
    lacking = await (await face.client("definitions:write")).get(path, 403)
    own = await (await profile_client(face, await made(face, "demo"))).get(path, 403)

    assert lacking.body.detail == (
        "This needs the scope definitions:read, which the token does not have."
    )
    assert own.body.detail.startswith("This needs a token with the scope definitions:read.")


async def test_the_workspace_of_an_application_that_was_just_made_elsewhere_is_known(
    face: Api, valkey: Server
) -> None:
    other = await Store.open(valkey.url)
    made_there = await other.registry.create_application("second")
    await other.close()

    client = await face.client("definitions:read", applications=("second",))
    found = await client.get(probe(made_there.workspace_id))

    assert found.plain[0] == "second"


async def test_a_token_for_an_application_that_was_deleted_still_reaches_the_other_at_once(
    face: Api,
) -> None:
    second = await face.store.registry.create_application("second")
    both = await face.client("definitions:read", applications=("demo", "second"))
    await face.store.registry.delete_application("second")
    demo = await face.store.registry.application("demo")
    assert demo is not None

    began = time.perf_counter()
    for _ in range(20):
        await both.get(probe(demo.workspace_id))
    # Whatever it does not know it reads anew, at most once in 0.1 s.
    assert time.perf_counter() - began < 1.0
    await both.get(probe(second.workspace_id), 403)


def basic(*given: str) -> dict[str, str]:
    return {"Authorization": f"Basic {b64encode(':'.join(given).encode()).decode()}"}


async def test_a_credential_is_admitted_by_basic_to_the_one_application_that_it_is_for(
    face: Api,
) -> None:
    anybody = face.admin.using(None)
    for scope in SCOPES:
        credential, secret = await face.store.registry.create_credential(["demo"], [scope])
        header = basic(credential.id, secret)
        if scope in ("events:write", "admin"):
            for _ in range(2):
                answer = await anybody.post(BASIC, b"", headers=header)
                expected = ["demo", "production", f"credential:{credential.id}"]
                assert expected == answer.plain
        else:
            answer = await anybody.post(BASIC, b"", 403, headers=header)
            assert answer.body.detail == (
                "This needs the scope events:write, which the token does not have."
            )


async def test_a_token_with_the_scope_is_admitted_where_basic_is(face: Api) -> None:
    await face.store.registry.create_application("second")
    writer = await face.client("events:write")
    assert ["demo", "production", "subject:test"] == (await writer.post(BASIC, b"")).plain
    await (await face.client("groups:read")).post(BASIC, b"", 403)
    await (await profile_client(face, await made(face, "demo"))).post(BASIC, b"", 403)
    both = await face.client("events:write", applications=("demo", "second"))
    assert "exactly one" in (await both.post(BASIC, b"", 403)).body.detail
    for token in ("x.y.z", ""):
        answer = await face.admin.using(token).post(BASIC, b"", 401)
        assert answer.headers["www-authenticate"].startswith('Bearer realm="belong"')


async def test_no_header_is_401_and_asks_for_basic(face: Api) -> None:
    for headers in ({}, {"Authorization": ""}, {"Authorization": "  "}):
        answer = await face.admin.using(None).post(BASIC, b"", 401, headers=headers)
        assert answer.body.error_code == "UNAUTHORIZED"
        assert answer.headers["www-authenticate"] == 'Basic realm="belong"'


async def test_a_header_that_is_there_and_not_right_is_403(face: Api) -> None:
    registry = face.store.registry
    credential, secret = await registry.create_credential(["demo"], ["events:write"])
    inactive, its_secret = await registry.create_credential(["demo"], ["events:write"])
    await registry.deactivate_credential(inactive.id)
    good = basic(credential.id, secret)["Authorization"]
    wrong = [
        # What the SDK sends when nobody gave it a key.
        "Basic Og==",
        "Basic",
        "Basic ",
        "Basic !!!!",
        "Basic /////w==",
        "Basic eA==",
        "Basic é",
        f"{good[:-4]}",
        f"Basic {good}",
        f"Token {secret}",
        secret,
        "Basic " + "A" * 20_000,
        basic(credential.id, "")["Authorization"],
        basic(credential.id, secret, "")["Authorization"],
        basic(credential.id, secret[:-1])["Authorization"],
        basic(credential.id.upper() + "x", secret)["Authorization"],
        basic(inactive.id, its_secret)["Authorization"],
        basic(inactive.id, secret)["Authorization"],
        basic("", secret)["Authorization"],
        basic("\0", "\0")["Authorization"],
    ]
    for header in wrong:
        answer = await face.admin.using(None).post(
            BASIC, b"", 403, headers={"Authorization": header}
        )
        assert answer.body.error_code == "FORBIDDEN", header
        assert "www-authenticate" not in answer.headers
    for header in (good, good.replace("Basic", "bASIC"), good.replace(" ", "   ")):
        await face.admin.using(None).post(BASIC, b"", headers={"Authorization": header})


async def test_a_credential_for_several_applications_is_403_with_a_sentence(face: Api) -> None:
    await face.store.registry.create_application("second")
    credential, secret = await face.store.registry.create_credential(
        ["demo", "second"], ["events:write"]
    )
    answer = await face.admin.using(None).post(
        BASIC, b"", 403, headers=basic(credential.id, secret)
    )
    assert answer.body.detail == (
        "The credential is for several applications, and nothing here says which of them is meant: "
        "use one that is for exactly one."
    )


async def test_basic_is_taken_nowhere_else_though_it_is_remembered(face: Api) -> None:
    credential, secret = await face.store.registry.create_credential(["demo"], ["admin"])
    demo = await face.store.registry.application("demo")
    assert demo is not None
    header = basic(credential.id, secret)
    anybody = face.admin.using(None)

    await anybody.post(BASIC, b"", headers=header)
    await anybody.get(f"{GROUPS}/", 401, headers=header)
    await anybody.get(probe(demo.workspace_id), 401, headers=header)
    await anybody.post(BASIC, b"", headers=header)


async def test_a_deactivated_credential_is_refused_within_seconds(
    face: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "RECHECK_SECONDS", 0.05)
    credential, secret = await face.store.registry.create_credential(["demo"], ["events:write"])
    header = basic(credential.id, secret)
    await face.admin.using(None).post(BASIC, b"", headers=header)

    await face.store.registry.deactivate_credential(credential.id)
    await asyncio.sleep(0.06)

    answer = await face.admin.using(None).post(BASIC, b"", 403, headers=header)
    assert answer.body.detail == "The id or the secret of the credential is wrong."


async def test_a_remembered_credential_is_known_without_waiting_and_the_memory_is_bounded(
    face: Api,
) -> None:
    access = auth.Access(signing.Seal(None), remembered=2)
    headers = []
    for _ in range(3):
        credential, secret = await face.store.registry.create_credential(["demo"], ["admin"])
        headers.append(basic(credential.id, secret)["Authorization"])
        assert access.known_credential(headers[-1]) is None
        principal = await access.check_credential(headers[-1], face.store)
        assert principal == access.known_credential(headers[-1])
        assert access.known(headers[-1]) is None

    assert [True, False, False] == [access.known_credential(each) is None for each in headers]
    assert access.known_credential(None) is None


async def test_a_caller_of_the_group_identity_face_learns_how_much_it_may(face: Api) -> None:
    registry = face.store.registry
    await registry.update_application("demo", requests_per_second=4)
    credential, secret = await registry.create_credential(["demo"], ["admin"])
    demo = await registry.application("demo")
    assert demo is not None
    token = await auth.mint(
        registry,
        applications=["demo"],
        scopes=["admin"],
        subject=credential.id,
        credential=credential.id,
    )
    bearer, header = face.admin.using(token), basic(credential.id, secret)

    # It is one caller, however it says who it is.
    used = [await bearer.get(probe(demo.workspace_id))]
    used += [await bearer.post(BASIC, b"", headers=header) for _ in range(2)]
    percents = [int(each.headers["x-mp-rate-limit-percentage-used"]) for each in used]
    assert percents == sorted(percents)
    assert 1 <= percents[0] <= 25
    assert percents[-1] <= 75
    refused = [await bearer.call("POST", BASIC, b"", headers=header) for _ in range(12)][-1]

    assert (429, "TOO_MANY_REQUESTS") == (refused.status, refused.body.error_code)
    assert refused.headers["x-mp-rate-limit-exceeded"] == "workspace"
    assert int(refused.headers["retry-after"]) >= 1
    assert "x-mp-rate-limit-percentage-used" not in refused.headers
    # The other face has the same limit, and no headers of mParticle's.
    elsewhere = await bearer.call("GET", f"{GROUPS}/")
    assert elsewhere.status == 429
    assert not [name for name in elsewhere.headers if name.startswith("x-mp-")]
    await registry.update_application("demo", requests_per_second=None)
    unlimited = await bearer.get(probe(demo.workspace_id))
    assert not [name for name in unlimited.headers if name.startswith("x-mp-")]
