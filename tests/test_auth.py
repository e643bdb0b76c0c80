"""Tokens: which are believed, for how long, and for what."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from base64 import urlsafe_b64encode
from typing import TYPE_CHECKING, Any

import jwt
import msgspec
import pytest

from service import auth, ids, signing
from service.auth import Access, InvalidToken
from service.config import Config
from service.errors import Unavailable
from service.registry import SCOPES
from service.signing import Seal
from service.verify import verify
from tests.client import GROUPS, P1, Api, Client, opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from service.environment import Application
    from tests.backings import Server

KEY = "k" * 32
SECRET = "the secret of the application's own back end"
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
    access = Access(Seal(None))
    token = await auth.mint(
        api.store.registry, applications=["demo"], scopes=["groups:read"], subject="me"
    )
    header = f"Bearer {token}"
    assert access.known(header) is None

    principal = await access.check(header, api.store)

    assert principal is access.known(header)
    assert (frozenset(["demo"]), frozenset(["groups:read"]), "me", None) == (
        principal.applications,
        principal.scopes,
        principal.subject,
        principal.credential,
    )


async def test_admin_implies_every_scope(api: Api) -> None:
    token = await auth.mint(api.store.registry, applications=[], scopes=["admin"], subject="me")

    assert (await Access(Seal(None)).check(f"Bearer {token}", api.store)).scopes == EVERY


async def test_the_memory_of_tokens_is_bounded(api: Api) -> None:
    access = Access(Seal(None), remembered=3)
    headers = []
    for number in range(5):
        token = await auth.mint(
            api.store.registry, applications=[], scopes=["admin"], subject=f"{number}"
        )
        headers.append(f"Bearer {token}")
        await access.check(headers[-1], api.store)

    assert [access.known(each) is not None for each in headers] == [False, False, True, True, True]


async def test_a_token_is_not_remembered_with_64_kib_of_spaces_before_it(api: Api) -> None:
    # Only the token was measured, and the header remembered: 10,000 of them took 600 MB.
    token = await signed(api)
    access = Access(Seal(None))
    padded = "Bearer" + " " * 60_000 + token

    with pytest.raises(InvalidToken):
        await access.check(padded, api.store)

    assert access.known(padded) is None


async def test_a_remembered_token_expires_on_time(api: Api) -> None:
    access = Access(Seal(None))
    token = await auth.mint(
        api.store.registry, applications=[], scopes=["admin"], subject="me", lifetime_seconds=2
    )
    await access.check(f"Bearer {token}", api.store)
    assert access.known(f"Bearer {token}") is not None

    deadline = time.monotonic() + 5
    while access.known(f"Bearer {token}") is not None:
        assert time.monotonic() < deadline
    with pytest.raises(InvalidToken, match="expired"):
        await access.check(f"Bearer {token}", api.store)


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


# --- forged by hand: a JWT library would not make these


def crafted(
    header: object, payload: object, key: bytes = b"", digest: str = "sha256", rest: str = ""
) -> str:
    """Sign anything with anything. Bytes go in as they are, everything else as JSON."""
    parts = [
        urlsafe_b64encode(part if isinstance(part, bytes) else json.dumps(part).encode())
        for part in (header, payload)
    ]
    signed = b".".join(part.rstrip(b"=") for part in parts)
    signature = urlsafe_b64encode(hmac.digest(key, signed, digest)).rstrip(b"=") if key else b""
    return f"{signed.decode()}.{signature.decode()}{rest}"


async def application(api: Api, client_id: str = "demo") -> Application:
    found = await api.store.registry.application(client_id)
    assert found is not None
    return found


async def refused(api: Api, token: str) -> str:
    """See a token refused over HTTP, and give the sentence."""
    answer = await api.admin.using(token).get(f"{GROUPS}/", 401)
    assert answer.body.error_code == "authentication_failed"
    detail: str = answer.body.detail
    return detail


async def principal(api: Api, token: str, seal: Seal | None = None) -> auth.Principal:
    return await Access(seal or Seal(KEY)).check(f"Bearer {token}", api.store)


# --- profile tokens


async def profile_token(api: Api, client_id: str = "demo") -> str:
    return signing.profile_token(await application(api, client_id), ids.parse(P1) or b"", 12345)


async def test_a_profile_token_speaks_for_one_profile_and_has_no_scope(api: Api) -> None:
    found = await principal(api, await profile_token(api))

    assert (
        auth.Principal(
            applications=frozenset(["demo"]),
            scopes=frozenset(),
            subject=P1,
            credential=None,
            caller=f"profile:{P1}",
            profile=ids.parse(P1),
            profile_since_us=12345,
        )
        == found
    )
    assert (True, False) == (found.is_of(12345), found.is_of(12346))


async def test_a_profile_token_is_403_where_a_scope_is_needed(api: Api) -> None:
    answer = await api.admin.using(await profile_token(api)).get(f"{GROUPS}/", 403)

    assert answer.body.detail == (
        "This needs a token with the scope groups:read. The token of a profile reads and changes "
        "that profile and reads its groups, nothing else."
    )


async def test_a_profile_token_survives_the_rotation_of_keys_and_never_expires(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await profile_token(api)
    await api.store.registry.rotate_keys()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 50 * 365 * 86_400)

    assert P1 == (await principal(api, token)).subject


async def test_a_profile_token_of_one_application_is_403_in_another(api: Api) -> None:
    await api.store.registry.create_application("second")
    client = api.admin.using(await profile_token(api))

    for client_id in ("second", "never-existed"):
        answer = await client.get(f"/api/v1/applications/{client_id}/profile-groups/", 403)
        assert answer.body.detail == f"The token is not for the application '{client_id}'."


async def test_a_remembered_profile_token_ends_with_its_application(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "RECHECK_SECONDS", 0.05)
    registry = api.store.registry
    await registry.create_application("second")
    access = Access(Seal(None))
    header = f"Bearer {await profile_token(api, 'second')}"
    await access.check(header, api.store)
    assert access.known(header) is not None

    await registry.delete_application("second")
    await asyncio.sleep(0.06)

    assert access.known(header) is None
    with pytest.raises(InvalidToken):
        await access.check(header, api.store)


async def test_a_profile_token_does_not_work_in_an_application_that_was_made_anew(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "RECHECK_SECONDS", 0.05)
    access = Access(Seal(None))
    header = f"Bearer {await profile_token(api)}"
    await access.check(header, api.store)

    def anew(_: dict[str, Any]) -> dict[str, object]:
        return {"secret": msgspec.to_builtins(b"n" * 32)}

    await api.store.registry.change_application("demo", anew)
    await asyncio.sleep(0.06)

    with pytest.raises(InvalidToken):
        await access.check(header, api.store)


async def test_forged_profile_tokens_are_401(api: Api) -> None:
    await api.store.registry.create_application("second")
    demo, second = await application(api), await application(api, "second")
    registry_key = await api.store.registry.signing_key()
    key = signing.profile_key(demo)
    header = {"alg": "HS256", "kid": "profile:demo", "typ": "profile+jwt"}
    claims = {"iss": "demo", "sub": P1, "since": 1, "iat": 1}
    good = crafted(header, claims, key)
    assert P1 == (await principal(api, good)).subject

    ours = {"sub": "x", "scope": "admin", "applications": ["demo"], "iat": 1, "exp": 2**40}
    forged = [
        # without a key, or with one that everybody has
        crafted(header | {"alg": "none"}, claims),
        crafted(header | {"alg": "None"}, claims),
        crafted(header | {"alg": "none"}, claims, key),
        crafted(header, claims),
        *(
            crafted(header, claims, public)
            for public in (b"demo", b"profile:demo", b"second", str(demo.workspace_id).encode())
        ),
        # with a key of somebody else, or for something else
        crafted(header, claims, signing.profile_key(second)),
        crafted(header, claims, registry_key.secret),
        crafted(header, claims, demo.secret),
        crafted(header | {"kid": "profile:second"}, claims, key),
        crafted(header | {"kid": "profile:second"}, claims, signing.profile_key(second)),
        crafted(header, claims | {"iss": "second"}, key),
        crafted(header | {"kid": registry_key.kid}, claims, key),
        crafted(header | {"kid": registry_key.kid}, claims, registry_key.secret),
        # as another kind of token
        crafted(header | {"typ": "at+jwt"}, claims, key),
        crafted(header | {"typ": "at+jwt"}, ours, key),
        crafted({**header, "typ": "at+jwt", "kid": registry_key.kid}, ours, key),
        crafted({**header, "kid": registry_key.kid}, ours, registry_key.secret),
        crafted(header | {"typ": "JWT"}, claims, key),
        crafted({"alg": "HS256", "kid": "profile:demo"}, claims, key),
        crafted(header | {"typ": None}, claims, key),
        crafted(header | {"typ": ["profile+jwt"]}, claims, key),
        crafted(header | {"typ": "Profile+JWT"}, claims, key),
        # with another algorithm
        crafted(header | {"alg": "HS512"}, claims, key, "sha512"),
        crafted(header | {"alg": "HS512"}, claims, key),
        crafted(header | {"alg": "RS256"}, claims, key),
        crafted(header | {"alg": "ES256"}, claims, key),
        crafted(header | {"alg": ["HS256"]}, claims, key),
        crafted({"kid": "profile:demo", "typ": "profile+jwt"}, claims, key),
        # with a key id that leads somewhere else
        *(
            crafted(header | {"kid": kid}, claims, key)
            for kid in (
                "demo",
                "profile:",
                "profile:profile:demo",
                "profile:../demo",
                "profile:demo/../demo",
                "profile:demo\0",
                "profile:Demo",
                " profile:demo",
                "/dev/null",
                "file:///dev/null",
                "' OR 1=1",
                "",
                None,
                7,
                ["profile:demo"],
            )
        ),
        # with claims that are none
        crafted(header, claims | {"sub": "alice"}, key),
        crafted(header, claims | {"sub": ""}, key),
        crafted(header, claims | {"sub": 1}, key),
        crafted(header, claims | {"since": "1"}, key),
        crafted(header, claims | {"since": 1.5}, key),
        crafted(header, claims | {"since": None}, key),
        crafted(header, {"iss": "demo", "sub": P1}, key),
        crafted(header, [], key),
        crafted(header, b"\xff", key),
        crafted(header, b"[" * 3000, key),
        crafted(b"[" * 3000, claims, key),
        crafted(b"\xff", claims, key),
        crafted("header", claims, key),
        crafted(header | {"crit": ["exp"]}, claims, key),
        crafted(header | {"b64": False, "crit": ["b64"]}, b"", key),
        crafted(header, claims | {"more": "x" * 8192}, key),
        crafted(header, claims, key, rest="A"),
        crafted(header, claims, key, rest="."),
        good.rpartition(".")[0] + ".",
        f"{good.rpartition('.')[0]}.AA",
        good.replace(".", ".."),
    ]
    for token in forged:
        assert await refused(api, token) == "The token is not valid.", token


async def test_duplicate_claims_give_nothing_that_the_last_one_does_not(api: Api) -> None:
    header = {"alg": "HS256", "kid": "profile:demo", "typ": "profile+jwt"}
    other = "00000000-0000-4000-8000-000000000000"
    twice = f'{{"iss":"second","iss":"demo","since":1,"sub":"{other}","sub":"{P1}"}}'.encode()

    token = crafted(header, twice, signing.profile_key(await application(api)))

    assert P1 == (await principal(api, token)).subject


# --- tokens that an application's own back end signs


@pytest.fixture
async def sealed(valkey: Server) -> AsyncIterator[Api]:
    """An API whose application `demo` has the signing secret `SECRET`."""
    async with opened(valkey.url, Config(secret_key=KEY)) as made:
        await signing.create_secret(made.store.registry, Seal(KEY), "demo", SECRET)
        yield made
        assert (await verify(made.store)).problems == []


def client_signed(
    secret: str = SECRET, headers: dict[str, Any] | None = None, /, **changes: object
) -> str:
    claims = {"iss": "demo", "iat": int(time.time()), "custom_profile_id": "alice"} | changes
    claims = {name: value for name, value in claims.items() if value is not None}
    return crafted({"alg": "HS256", "typ": "JWT"} | (headers or {}), claims, secret.encode())


async def custom_profile(api: Api, custom_id: str) -> bytes | None:
    environment = (await application(api)).production
    [found] = await api.store.profiles.resolve_identities(
        environment, "customer_id", [custom_id], create=False
    )
    return found


@pytest.mark.parametrize("profiles", ["open", "registered"])
async def test_the_first_use_of_a_client_signed_token_creates_its_profile(
    sealed: Api, profiles: Any
) -> None:
    """In a `registered` application, too: who holds the secret says who is registered."""
    await sealed.store.registry.update_application("demo", profiles=profiles)
    assert await custom_profile(sealed, "alice") is None

    answer = await sealed.admin.using(client_signed()).get(f"{GROUPS}/", 403)

    assert "The token of a profile" in answer.body.detail
    created = await custom_profile(sealed, "alice")
    assert created is not None
    found = await principal(sealed, client_signed())
    assert (created, None, frozenset(), frozenset(["demo"])) == (
        found.profile,
        found.profile_since_us,
        found.scopes,
        found.applications,
    )
    assert found.is_of(1)


async def test_the_header_of_a_client_signed_token_needs_no_type_and_no_key_id(
    sealed: Api,
) -> None:
    for headers in ({"typ": None}, {"typ": "jwt"}, {"kid": "mine"}, {"kid": "profile:demo"}):
        assert await principal(sealed, client_signed(SECRET, headers))
    claims = {"iss": "demo", "iat": int(time.time()), "custom_profile_id": "alice"}
    assert await principal(sealed, crafted({"alg": "HS256"}, claims, SECRET.encode()))
    assert await principal(sealed, jwt.encode(claims, SECRET, algorithm="HS256"))


async def test_a_client_signed_token_gives_a_profile_s_rights_whatever_it_claims(
    sealed: Api,
) -> None:
    await sealed.store.registry.create_application("second")
    token = client_signed(
        scope="admin",
        scopes=["admin"],
        applications=["demo", "second"],
        client_id="second",
        sub="admin",
        admin=True,
        since=0,
        profile=P1,
    )

    found = await principal(sealed, token)

    assert (frozenset(["demo"]), frozenset(), None) == (
        found.applications,
        found.scopes,
        found.credential,
    )
    client = sealed.admin.using(token)
    await client.get(f"{GROUPS}/", 403)
    await client.get("/api/v1/applications/second/profile-groups/", 403)


async def test_two_processes_that_see_a_token_first_make_one_profile(
    sealed: Api, valkey: Server
) -> None:
    token = client_signed()
    async with opened(valkey.url, Config(secret_key=KEY)) as other:
        found = await asyncio.gather(
            *(principal(each, token) for each in (sealed, other) for _ in range(20))
        )

    assert 1 == len({each.profile for each in found})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"iat": -90_000}, "The token has expired."),
        ({"iat": -90_000, "exp": 60}, None),
        ({"iat": -86_390}, None),
        ({"exp": -1}, "The token has expired."),
        ({"exp": 10**9}, None),
        ({"iat": 9}, None),
        ({"iat": 60}, "The token is from the future."),
        ({"nbf": 60}, "The token is from the future."),
        ({"nbf": -60}, None),
    ],
)
async def test_a_client_signed_token_lasts_from_iat_to_exp_or_for_a_day(
    sealed: Api, changes: dict[str, int], sentence: str | None
) -> None:
    token = client_signed(**{name: time.time() + at for name, at in changes.items()})

    if sentence is None:
        assert await principal(sealed, token)
    else:
        assert sentence == await refused(sealed, token)
        assert await custom_profile(sealed, "alice") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": None},
        {"iss": "second"},
        {"iss": "never-existed"},
        {"iss": ["demo"]},
        {"iss": 1},
        {"iat": None},
        {"iat": "now"},
        {"iat": True},
        {"iat": float("nan")},
        {"iat": float("inf")},
        {"iat": 10**400},
        {"exp": "never"},
        {"exp": float("inf")},
        {"exp": True},
        {"nbf": []},
        {"custom_profile_id": None},
        {"custom_profile_id": ""},
        {"custom_profile_id": "a\0b"},
        {"custom_profile_id": "\0"},
        {"custom_profile_id": "x" * 256},
        {"custom_profile_id": 7},
        {"custom_profile_id": ["alice"]},
        {"custom_profile_id": "\ud800"},
    ],
    ids=str,
)
async def test_a_client_signed_token_with_claims_that_do_not_fit_is_401(
    sealed: Api, changes: dict[str, object]
) -> None:
    await sealed.store.registry.create_application("second")

    told = await refused(sealed, client_signed(**changes))
    [(claim, value)] = changes.items()
    if claim == "iss" or value == "\ud800" or (isinstance(value, float) and claim != "nbf"):
        assert told == "The token is not valid."
    else:
        # Whoever signed it with the right secret is told what is wrong.
        assert told == f"The claim {claim} of the token is missing or does not fit."


async def test_a_custom_id_in_a_token_is_anything_of_255_characters(sealed: Api) -> None:
    for custom_id in ("x" * 255, "\U0001f642" * 255, " ", "a\nb\n", P1, "demo/../\\"):
        found = await principal(sealed, client_signed(custom_profile_id=custom_id))
        assert found.profile == await custom_profile(sealed, custom_id)


async def test_forged_client_signed_tokens_are_401(sealed: Api) -> None:
    await sealed.store.registry.create_application("second")
    other = "the secret of the second application, which is another"
    await signing.create_secret(sealed.store.registry, Seal(KEY), "second", other)
    demo = await application(sealed)
    [kept] = demo.signing_secrets.values()
    now = int(time.time())
    claims = {"iss": "demo", "iat": now, "custom_profile_id": "alice"}
    header = {"alg": "HS256", "typ": "JWT"}
    duplicate = f'{{"iss":"second","iat":{now},"custom_profile_id":"a","iss":"demo"}}'.encode()
    key = SECRET.encode()
    forged = [
        crafted(header | {"alg": "none"}, claims),
        crafted(header, claims),
        crafted(header, claims, b"demo"),
        crafted(header, claims, kept.sealed),
        crafted(header, claims, kept.id.encode()),
        crafted(header, claims, signing.profile_key(demo)),
        crafted(header, claims, (await sealed.store.registry.signing_key()).secret),
        crafted(header, claims, other.encode()),
        crafted(header, duplicate, other.encode()),
        crafted(header | {"kid": kept.id}, claims, other.encode()),
        crafted(header | {"alg": "HS512"}, claims, key, "sha512"),
        crafted(header | {"alg": "RS256"}, claims, key),
        crafted(header | {"typ": "at+jwt"}, claims, key),
        crafted(header | {"typ": "profile+jwt"}, claims, key),
        crafted(header | {"typ": "profile+jwt", "kid": "profile:demo"}, claims, key),
        crafted(header | {"crit": ["x"]}, claims, key),
        crafted(header, claims | {"more": "x" * 8192}, key),
        crafted(header, b"[" * 3000, key),
    ]
    for token in forged:
        assert await refused(sealed, token) == "The token is not valid.", token
    assert await custom_profile(sealed, "alice") is None


@pytest.mark.parametrize("kind", ["JWT", "profile+jwt", "at+jwt"])
async def test_a_token_that_is_nested_too_deeply_is_401(sealed: Api, kind: str) -> None:
    # Anybody got a 500 and a traceback in the log: a claim that is passed over has a depth, too.
    nested = b'{"iss":"demo","x":' + b"[" * 2500 + b"]" * 2500 + b"}"
    header = {"alg": "HS256", "typ": kind, "kid": "profile:demo"}

    assert await refused(sealed, crafted(header, nested)) == "The token is not valid."
    assert await refused(sealed, crafted(nested, {})) == "The token is not valid."


async def test_each_of_several_signing_secrets_counts_until_it_is_deleted(
    sealed: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "RECHECK_SECONDS", 0.05)
    registry = sealed.store.registry
    [old] = (await application(sealed)).signing_secrets
    _, text = await signing.create_secret(registry, Seal(KEY), "demo")
    assert (await principal(sealed, client_signed())) == await principal(
        sealed, client_signed(text)
    )
    access = Access(Seal(KEY))
    header = f"Bearer {client_signed()}"
    await access.check(header, sealed.store)

    await signing.delete_secret(registry, old)
    await asyncio.sleep(0.06)

    assert access.known(header) is None
    with pytest.raises(InvalidToken):
        await access.check(header, sealed.store)
    assert await principal(sealed, client_signed(text))


async def test_a_remembered_client_signed_token_ends_on_time(sealed: Api) -> None:
    access = Access(Seal(KEY))
    header = f"Bearer {client_signed(exp=time.time() + 0.5)}"
    await access.check(header, sealed.store)
    assert access.known(header) is not None

    await asyncio.sleep(0.6)

    assert access.known(header) is None
    with pytest.raises(InvalidToken, match="expired"):
        await access.check(header, sealed.store)


async def test_a_client_signed_token_creates_anew_the_profile_that_was_erased(
    sealed: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "RECHECK_SECONDS", 0.05)
    access = Access(Seal(KEY))
    header = f"Bearer {client_signed()}"
    before = await access.check(header, sealed.store)
    assert before.profile is not None

    await sealed.store.profiles.erase_profile(
        (await application(sealed)).production, before.profile
    )
    await asyncio.sleep(0.06)
    after = await access.check(header, sealed.store)

    assert before.profile != after.profile
    assert after.profile == await custom_profile(sealed, "alice")


async def test_without_the_right_secret_key_client_signed_tokens_are_503_and_the_log_says_why(
    sealed: Api, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    [secret_id] = (await application(sealed)).signing_secrets
    wrong = Seal("w" * 32)
    for seal in (wrong, wrong, Seal(None)):
        with pytest.raises(Unavailable, match="cannot read its signing secrets; its log says why"):
            await principal(sealed, client_signed(), seal)

    said = f"signing secret {secret_id} of demo cannot be used:"
    assert [
        f"{said} it was made under another --secret-key",
        f"{said} no --secret-key is set here",
    ] == [each.getMessage() for each in caplog.records]
    await principal(sealed, await profile_token(sealed), wrong)


async def test_a_client_signed_token_of_an_application_without_secrets_is_401(api: Api) -> None:
    assert await refused(api, client_signed()) == "The token is not valid."
