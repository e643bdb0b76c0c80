"""Tokens: which are believed, for how long, and for what."""

from __future__ import annotations

import time

import jwt
import pytest

from service import auth
from service.auth import Access, InvalidToken
from service.registry import SCOPES
from tests.client import GROUPS, Api, Client

EVERY = frozenset(SCOPES)


async def signed(api: Api, *, headers: dict[str, object] | None = None, **changes: object) -> str:
    key = await api.store.registry.signing_key()
    now = int(time.time())
    claims = {
        "sub": "test",
        "scope": "admin",
        "applications": ["demo"],
        "iat": now,
        "exp": now + 60,
    } | changes
    return jwt.encode(
        {name: value for name, value in claims.items() if value is not None},
        key.secret,
        headers={"kid": key.kid, "typ": auth.TOKEN_TYPE} | (headers or {}),
    )


async def test_a_token_of_ours_is_believed(api: Api) -> None:
    await api.admin.using(await signed(api)).get(f"{GROUPS}/")


@pytest.mark.parametrize(
    ("changes", "headers"),
    [
        ({"exp": 1}, {}),
        ({"exp": None}, {}),
        ({"iat": None}, {}),
        ({"iat": int(time.time()) + 3600}, {}),
        ({"iat": "now"}, {}),
        ({"sub": None}, {}),
        ({"scope": None}, {}),
        ({"scope": ["admin"]}, {}),
        ({"applications": "demo"}, {}),
        ({}, {"kid": "unknown"}),
        ({}, {"typ": "JWT"}),
        ({"client_id": "never-existed"}, {}),
    ],
)
async def test_a_token_that_is_not_right_is_401(
    api: Api, changes: dict[str, object], headers: dict[str, object]
) -> None:
    token = await signed(api, headers=headers, **changes)

    answer = await api.admin.using(token).get(f"{GROUPS}/", 401)

    assert answer.body.error_code == "authentication_failed"
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


async def test_a_token_of_a_host_whose_clock_is_ahead_is_believed(api: Api) -> None:
    """One second ahead was enough to have fresh tokens refused by every other host."""
    now = int(time.time())
    await api.admin.using(await signed(api, iat=now + 9)).get(f"{GROUPS}/")

    await api.admin.using(await signed(api, iat=now + 60)).get(f"{GROUPS}/", 401)
    late = await api.admin.using(await signed(api, exp=now)).get(f"{GROUPS}/", 401)
    assert late.body.detail == "The token has expired."


async def test_forged_tokens_are_401(api: Api) -> None:
    key = await api.store.registry.signing_key()
    headers = {"kid": key.kid, "typ": auth.TOKEN_TYPE}
    claims = jwt.decode(await signed(api), options={"verify_signature": False})
    good = await signed(api)
    forged = [
        jwt.encode(claims, b"x" * 32, headers=headers),
        jwt.encode(claims, "", algorithm="none", headers=headers),
        jwt.encode(claims, key.secret * 2, algorithm="HS512", headers=headers),
        good[:-2],
        good.rpartition(".")[0] + ".",
        good + "x",
        "not.a.token",
        "x" * 100_000,
        "é",
    ]
    for token in forged:
        answer = await api.admin.using(token).get(f"{GROUPS}/", 401)
        assert answer.body.error_code == "authentication_failed"


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "bearer", "Token x", "Basic eDp5"]
)
async def test_no_token_is_401_and_says_how(admin: Client, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}

    answer = await admin.using(None).get(f"{GROUPS}/", 401, headers=headers)

    assert answer.body.error_code == "not_authenticated"
    assert answer.headers["www-authenticate"] == 'Bearer realm="belong"'


async def test_the_scheme_may_be_written_in_any_case(admin: Client) -> None:
    headers = {"Authorization": f"bearer  {admin.token}"}

    await admin.using(None).get(f"{GROUPS}/", headers=headers)


async def test_a_token_of_one_application_sees_nothing_of_another(api: Api) -> None:
    await api.store.registry.create_application("second")
    await api.store.registry.create_application("third")
    bodies = []
    for client_id in ("second", "third", "never-existed"):
        answer = await api.admin.get(f"/api/v1/applications/{client_id}/profile-groups/", 403)
        bodies.append(answer.content.replace(client_id.encode(), b"?"))
    assert len(set(bodies)) == 1

    both = await api.client("admin", applications=("demo", "second"))
    await both.get(f"{GROUPS}/")
    await both.get("/api/v1/applications/second/profile-groups/")
    await both.get("/api/v1/applications/third/profile-groups/", 403)


async def test_a_token_of_an_application_that_is_gone_is_403(api: Api) -> None:
    client = await api.client("admin", applications=("gone",))

    await client.get("/api/v1/applications/gone/profile-groups/", 403)


async def test_tokens_of_a_rotated_key_stay_valid(api: Api, admin: Client) -> None:
    await api.store.registry.rotate_keys()

    await admin.get(f"{GROUPS}/")
    await (await api.client("groups:read")).get(f"{GROUPS}/")


async def test_a_remembered_token_is_known_without_waiting(api: Api) -> None:
    access = Access()
    token = await auth.mint(
        api.store.registry, applications=["demo"], scopes=["groups:read"], subject="me"
    )
    header = f"Bearer {token}"
    assert access.known(header) is None

    principal = await access.check(header, api.store.registry)

    assert principal is access.known(header)
    assert (frozenset(["demo"]), frozenset(["groups:read"]), "me", None) == (
        principal.applications,
        principal.scopes,
        principal.subject,
        principal.credential,
    )


async def test_admin_implies_every_scope(api: Api) -> None:
    token = await auth.mint(api.store.registry, applications=[], scopes=["admin"], subject="me")

    assert (await Access().check(f"Bearer {token}", api.store.registry)).scopes == EVERY


async def test_the_memory_of_tokens_is_bounded(api: Api) -> None:
    access = Access(remembered=3)
    headers = []
    for number in range(5):
        token = await auth.mint(
            api.store.registry, applications=[], scopes=["admin"], subject=f"{number}"
        )
        headers.append(f"Bearer {token}")
        await access.check(headers[-1], api.store.registry)

    assert [access.known(each) is not None for each in headers] == [False, False, True, True, True]


async def test_a_remembered_token_expires_on_time(api: Api) -> None:
    access = Access()
    token = await auth.mint(
        api.store.registry, applications=[], scopes=["admin"], subject="me", lifetime_seconds=2
    )
    await access.check(f"Bearer {token}", api.store.registry)
    assert access.known(f"Bearer {token}") is not None

    deadline = time.monotonic() + 5
    while access.known(f"Bearer {token}") is not None:
        assert time.monotonic() < deadline
    with pytest.raises(InvalidToken, match="expired"):
        await access.check(f"Bearer {token}", api.store.registry)


async def test_a_deactivated_credential_stops_within_seconds(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "RECHECK_SECONDS", 0.05)
    registry = api.store.registry
    credential, _ = await registry.create_credential(["demo"], ["groups:read"])
    token = await auth.mint(
        registry,
        applications=["demo"],
        scopes=["groups:read"],
        subject=credential.id,
        credential=credential.id,
    )
    client = api.admin.using(token)
    await client.get(f"{GROUPS}/")

    await registry.deactivate_credential(credential.id)

    deadline = time.monotonic() + 1
    while (answer := await client.call("GET", f"{GROUPS}/")).status == 200:
        assert time.monotonic() < deadline
    assert answer.body.detail == "The credential of this token was deactivated."
