"""Who may call what: the table scope x route, row by row, and two applications that probe.

The rows are made from `app.operations()`, so a new route cannot be forgotten: it needs a recipe
here, how to make a request of it that succeeds.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec
import pytest

from service import app, auth, ids, signing
from service.app import operations
from service.endpoint import API, Resource, endpoint, operation_of
from service.registry import SCOPES
from service.store_records import NewProfile
from tests.client import GROUPS, Api, Client, opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from service.admission import TenantCall
    from service.endpoint import Operation
    from tests.backings import Server
    from tests.client import Answer


class World(msgspec.Struct, frozen=True):
    """What a request can name. The profile has a record and is in the group."""

    client_id: str
    group: str
    custom_group: str
    profile: str
    custom_profile: str
    created_at_us: int

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


def nickname(_: World) -> object:
    return {"nickname": "N"}


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
    "GET /applications/{cid}/profiles/{pid}/profile-groups": nothing,
    "POST /applications/{cid}/memberships/check": pairs,
    "POST /applications/{cid}/memberships/bulk": lines,
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
    }
    return API + template.format_map({n: quote(v, safe="") for n, v in named.items()}), body


async def made(api: Api, client_id: str) -> World:
    """Make a group and a profile in it, all new."""
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
    scopes = {operation.scope for _, _, operation in operations()} - {None}

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
        answer = await call(client, method, path, await made(api, "demo"))
        if scope in (operation.scope, "admin"):
            assert answer.status in (operation.status, 204), (scope, answer)
        else:
            assert answer.status == 403, (scope, answer)
            assert answer.body.detail == (
                f"This needs the scope {operation.scope}, which the token does not have."
            )
    without = [each for each in SCOPES if each not in (operation.scope, "admin")]
    everything_else = await api.client(*without)
    answer = await call(everything_else, method, path, await made(api, "demo"))
    assert answer.status == 403


@pytest.mark.parametrize(("method", "path", "operation"), GUARDED)
async def test_without_a_token_or_with_one_that_is_none_nothing_is_done(
    api: Api, method: str, path: str, operation: Operation
) -> None:
    assert operation.scope is not None
    world = await made(api, "demo")
    before = await held(api, "demo")

    for token in (None, "", "x.y.z"):
        answer = await call(api.admin.using(token), method, path, world)
        assert answer.status == 401
        assert answer.headers["www-authenticate"].startswith('Bearer realm="belong"')
    assert before == await held(api, "demo")


@pytest.mark.parametrize(("method", "path", "operation"), GUARDED)
async def test_the_token_of_a_profile_may_do_its_own_and_nothing_else(
    api: Api, method: str, path: str, operation: Operation
) -> None:
    world, other = await made(api, "demo"), await made(api, "demo")
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


# --- two applications


async def held(api: Api, client_id: str) -> object:
    """Read everything of an application that can be listed."""
    admin = await api.client("admin", applications=(client_id,))
    groups = f"{API}/applications/{client_id}/profile-groups"
    found = []
    for group in (await admin.get(f"{groups}/?page_size=1000")).body.results:
        members = (await admin.get(f"{groups}/{group.id}/members/?page_size=1000")).body.results
        found.append((group, members))
    return found


def without(answer: Answer, *names: str) -> tuple[int, bytes]:
    """Give what can be seen of an error, but for the names that were asked for."""
    content = answer.content
    for name in names:
        content = content.replace(name.encode(), b"?")
    return answer.status, content if answer.status >= 400 else b""


@pytest.mark.parametrize(("method", "path", "operation"), GUARDED)
async def test_a_foreign_application_is_403_whether_it_exists_or_not(
    api: Api, method: str, path: str, operation: Operation
) -> None:
    assert operation.scope is not None
    await api.store.registry.create_application("second")
    second = await made(api, "second")
    before = await held(api, "second")
    seen = set()
    mine = await made(api, "demo")
    for client in (api.admin, await api.client(operation.scope), await profile_client(api, mine)):
        for client_id in ("second", "never-existed"):
            where, body = recipe(method, path, msgspec.structs.replace(second, client_id=client_id))
            if "{cid}" not in path:
                where += f"?client_id={client_id}"
            answer = await client.call(method, where, body, status=403)
            seen.add(without(answer, client_id))

    assert len(seen) == 1
    assert before == await held(api, "second")


@pytest.mark.parametrize("kind", ["group", "custom_group", "profile", "custom_profile"])
@pytest.mark.parametrize(("method", "path", "operation"), GUARDED)
async def test_ids_of_another_application_are_as_unknown_as_those_of_nobody(
    api: Api, method: str, path: str, operation: Operation, kind: str
) -> None:
    assert operation.scope is not None
    await api.store.registry.create_application("second")
    second = await made(api, "second")
    before = await held(api, "second")
    unknown = uuid.uuid4().hex if kind.startswith("custom") else str(uuid.uuid4())
    field = kind.removeprefix("custom_")
    seen = set()
    for named in (getattr(second, kind), unknown):
        mine = await made(api, "demo")
        asked = msgspec.structs.replace(mine, **{kind: named, field: named})
        answer = await call(api.admin, method, path, asked)
        seen.add(
            without(
                answer, named, quote(named, safe=""), mine.group, mine.profile, mine.custom_group
            )
        )

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
    *(each for each in GUARDED if "{cid}" not in str(each.values[1])),
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
