"""The token endpoint, as RFC 6749 and the clients of the Group Identity API want it."""

from __future__ import annotations

import base64
import time
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import msgspec
import pytest

from service.tokens import TokenErrorBody
from tests.client import DEMO, GROUPS, Api, Client

if TYPE_CHECKING:
    from tests.client import Answer

PATH = "/oauth/token"
GRANT = {"grant_type": "client_credentials"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


async def credential(api: Api, *scopes: str) -> dict[str, str]:
    made, secret = await api.store.registry.create_credential(
        ["demo"], list(scopes) or ["groups:read", "members:read"]
    )
    return {"client_id": made.id, "client_secret": secret}


def basic(given: dict[str, str]) -> dict[str, str]:
    pair = f"{given['client_id']}:{given['client_secret']}"
    return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def error(answer: Answer) -> str:
    """Every answer says no-store, and errors have RFC 6749's shape."""
    assert answer.headers["cache-control"] == "no-store"
    body = msgspec.json.decode(answer.content, type=TokenErrorBody)
    assert body.error_description
    return body.error


@pytest.fixture
def anybody(admin: Client) -> Client:
    """A client without a token."""
    return admin.using(None)


async def test_json_form_and_basic_all_get_a_token_that_works(api: Api, anybody: Client) -> None:
    given = await credential(api)
    answers = [
        await anybody.post(PATH, given | GRANT),
        await anybody.post(f"{PATH}/", given | GRANT | {"audience": "https://api.mparticle.com"}),
        await anybody.post(PATH, given | GRANT | {"audience": "anything", "more": [1]}),
        await anybody.post(PATH, given | GRANT, headers={"Content-Type": "text/plain"}),
        await anybody.post(PATH, given | GRANT, headers=FORM),
        await anybody.post(PATH, urlencode(given | GRANT), headers=FORM),
        await anybody.post(PATH, urlencode(GRANT), headers=FORM | basic(given)),
        await anybody.post(PATH, GRANT, headers=basic(given)),
        await anybody.post(PATH, GRANT | {"client_id": given["client_id"]}, headers=basic(given)),
    ]
    for answer in answers:
        assert (
            answer.body.token_type,
            answer.body.expires_in,
            answer.body.scope,
        ) == ("Bearer", 28800, "groups:read members:read")
        assert answer.headers["cache-control"] == "no-store"
        await anybody.using(answer.body.access_token).get(f"{GROUPS}/")
        await anybody.using(answer.body.access_token).post(f"{GROUPS}/", {"name": "n"}, 403)


async def test_a_token_may_have_fewer_scopes_but_not_more(api: Api, anybody: Client) -> None:
    given = await credential(api)
    fewer = (await anybody.post(PATH, given | GRANT | {"scope": "groups:read"})).body
    assert fewer.scope == "groups:read"
    await anybody.using(fewer.access_token).get(f"{GROUPS}/")
    check: dict[str, object] = {"pairs": []}
    await anybody.using(fewer.access_token).post(f"{DEMO}/memberships/check/", check, 403)

    more = await anybody.post(PATH, given | GRANT | {"scope": "groups:read admin"}, 400)
    assert error(more) == "invalid_scope"


async def test_an_admin_credential_may_ask_for_any_scope(api: Api, anybody: Client) -> None:
    given = await credential(api, "admin")

    assert (
        await anybody.post(PATH, given | GRANT | {"scope": "events:write"})
    ).body.scope == "events:write"
    assert (
        error(await anybody.post(PATH, given | GRANT | {"scope": "made:up"}, 400))
        == "invalid_scope"
    )


async def test_a_wrong_credential_is_invalid_client(api: Api, anybody: Client) -> None:
    given = await credential(api)
    gone = await credential(api)
    await api.store.registry.deactivate_credential(gone["client_id"])
    for wrong in (
        given | {"client_secret": "wrong"},
        given | {"client_secret": ""},
        given | {"client_id": "unknown"},
        gone,
        {},
        {"client_id": given["client_id"]},
    ):
        answer = await anybody.post(PATH, wrong | GRANT, 401)
        assert error(answer) == "invalid_client"
        assert answer.headers["www-authenticate"] == 'Basic realm="belong"'
    for header in ("Basic", "Basic !!!!", "Basic /////w==", "Basic eA=="):
        headers = {"Authorization": header}
        assert error(await anybody.post(PATH, GRANT, 401, headers=headers)) == "invalid_client"


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        (b"", {}, "invalid_request"),
        ({}, {}, "invalid_request"),
        (b"{", {}, "invalid_request"),
        (b'"\xff"', {}, "invalid_request"),
        (b"[" * 16_000, {}, "invalid_request"),
        ({"grant_type": 1}, {}, "invalid_request"),
        (b"grant_type=\xff", FORM, "invalid_request"),
        (b"grant_type=%ff", FORM, "invalid_request"),
        (b"grant_type=a&grant_type=b", FORM, "invalid_request"),
        ("&".join(f"a{n}=b" for n in range(21)), FORM, "invalid_request"),
        ({"grant_type": "password"}, {}, "unsupported_grant_type"),
        ({"grant_type": ""}, {}, "unsupported_grant_type"),
        (
            GRANT | {"client_id": "a", "client_secret": "b"},
            {"Authorization": "Basic YTpi"},
            "invalid_request",
        ),
    ],
)
async def test_what_is_no_request_for_a_token_is_refused(
    anybody: Client, body: object, headers: dict[str, str], expected: str
) -> None:
    assert expected == error(await anybody.post(PATH, body, 400, headers=headers))


async def test_a_form_of_8_mib_is_refused_before_it_is_read(anybody: Client) -> None:
    """`a&a&…` from anybody held up the event loop for ten seconds."""
    body = b"a&" * (4 * 1024 * 1024)
    began = time.monotonic()

    answer = await anybody.post(PATH, body, 413, headers=FORM)

    assert time.monotonic() - began < 1
    assert error(answer) == "invalid_request"
    assert "16384 bytes (16 KiB)" in answer.plain["error_description"]
    padded = b'{"grant_type":"password"}'.ljust(16 * 1024)
    assert error(await anybody.post(PATH, padded, 400)) == "unsupported_grant_type"
    assert error(await anybody.post(PATH, padded + b" ", 413)) == "invalid_request"


async def test_the_secret_is_not_kept(api: Api) -> None:
    given = await credential(api)

    held = await api.store.registry.credential(given["client_id"])

    assert given["client_secret"] not in repr(held)
