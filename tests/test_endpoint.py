"""Bad input and bad luck: the status, and a message that says what and where; nothing changed."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote

import falcon
import falcon.testing
import msgspec
import pytest

from service import app
from service import endpoint as endpoint_module
from service.config import Config
from service.endpoint import (
    BODY_LIMIT_BYTES,
    DISCARD_LIMIT_BYTES,
    Request,
    Resource,
    endpoint,
    stepwise,
    timestamp,
)
from service.errors import Unprocessable
from tests.client import DEMO, GROUPS, P1, Api, Client, opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from service.admission import TenantCall
    from tests.backings import Server

LONG = "x" * 256
GROUP = {"name": "n"}
LEAF = {"attribute": "plan", "condition": "is", "value": "pro"}


def with_(**fields: object) -> dict[str, object]:
    return {**GROUP, **fields}


def attributes(*pairs: dict[str, Any]) -> dict[str, object]:
    return with_(attributes=list(pairs))


BAD_GROUPS: list[tuple[object, int, str]] = [
    # body of a create, status, what the answer must hold
    (b"", 400, '"detail":"A JSON body is required, and this one is empty."'),
    (b" \n", 400, "A JSON body is required"),
    (b'{"name":', 400, '"error_code":"invalid"'),
    (b'{"name":"n"} x', 400, "The body is not JSON: trailing characters"),
    (b"\xef\xbb\xbf{}", 400, "not JSON"),
    (b"[object Object]", 400, "JSON.stringify"),
    (b'{"name":"\xff"}', 400, "not valid UTF-8"),
    (b'{"name":"\\ud800 and more"}', 400, "surrogate"),
    (b"[]", 400, "Expected `object`, got `array`"),
    (b"null", 400, "Expected `object`, got `null`"),
    (b'{"name":"n","rule_tree":' + b"[" * 100_000, 400, "nested too deeply"),
    ({}, 400, '{"name":["Object missing required field `name`"]}'),
    ({"name": 1}, 400, '{"name":["Expected `str`, got `int` - at `$.name`"]}'),
    ({"name": None}, 400, "$.name"),
    ({"name": ""}, 400, "length >= 1 - at `$.name`"),
    ({"name": LONG}, 400, "length <= 255 - at `$.name`"),
    ({"name": "a\0b"}, 400, '{"name":["NUL characters are not allowed - at `$.name`"]}'),
    (with_(colour="red"), 400, '{"colour":["Object contains unknown field `colour`"]}'),
    (with_(**{"c" * 500: 1}), 400, "very long name"),
    (with_(is_active="yes"), 400, "$.is_active"),
    (with_(is_active=None), 400, "$.is_active"),
    (with_(description="x" * 2001), 400, "length <= 2000 - at `$.description`"),
    (with_(description="\0"), 400, "$.description"),
    (with_(custom_id=LONG), 400, "$.custom_id"),
    (with_(custom_id=""), 400, "$.custom_id"),
    (with_(custom_id="\0"), 400, "$.custom_id"),
    (with_(custom_id=5), 400, "$.custom_id"),
    (with_(attributes={"key": "k"}), 400, "Expected `array`, got `object` - at `$.attributes`"),
    (with_(attributes=None), 400, "$.attributes"),
    (attributes(*[{"key": "k", "value": "v"}] * 101), 400, "length <= 100 - at `$.attributes`"),
    (attributes({"key": "k"}), 400, "missing required field `value` - at `$.attributes[0]`"),
    (attributes({"key": "k", "value": 1}), 400, "$.attributes[0].value"),
    (attributes({"key": LONG, "value": ""}), 400, "$.attributes[0].key"),
    (attributes({"key": "", "value": ""}), 400, "$.attributes[0].key"),
    (attributes({"key": "k", "value": "v" * 1025}), 400, "$.attributes[0].value"),
    (
        attributes({"key": "k", "value": ""}, {"key": "\0", "value": ""}),
        400,
        '{"attributes":["NUL characters are not allowed - at `$.attributes[1]`"]}',
    ),
    (attributes({"key": "k", "value": "v", "more": 1}), 400, "unknown field `more` - at"),
    (with_(membership_type="dynamic"), 400, "$."),
    (with_(membership_type="dynamic", rule_tree=LEAF | {"condition": "odd"}), 400, "$."),
    (with_(membership_type="odd"), 400, "$.membership_type"),
    (with_(rule_tree=LEAF), 400, "only a dynamic group has a rule tree"),
    (with_(rule_tree={"operator": "AND", "children": []}), 400, "$.rule_tree"),
]


@pytest.mark.parametrize(("body", "status", "expected"), BAD_GROUPS)
async def test_a_bad_group_is_refused_with_what_and_where_and_nothing_changes(
    admin: Client, body: object, status: int, expected: str
) -> None:
    kept = await admin.group("kept")

    for method, path in (("POST", f"{GROUPS}/"), ("POST", f"{GROUPS}/mine/")):
        answer = await admin.call(method, path, body, status=status)
        assert expected in text_of(answer.content)
    answer = await admin.call("PUT", f"{GROUPS}/{kept}/", body, status=status)
    assert expected in text_of(answer.content)

    groups = (await admin.get(f"{GROUPS}/")).body
    assert [(kept, "kept", [])] == [(g.id, g.name, g.attributes) for g in groups.results]


IDS = [P1]
BAD_IDS: list[tuple[object, int, str]] = [
    (b"", 400, "A JSON body is required"),
    (b"[object Object]", 400, "JSON.stringify"),
    (b'{"profile_ids":["\xff"]}', 400, "not valid UTF-8"),
    ({}, 400, "give either `profile_ids` or `custom_ids`"),
    ({"profile_ids": IDS, "custom_ids": ["c"]}, 400, "not both and not neither"),
    ({"profile_ids": [], "custom_ids": []}, 400, "not both and not neither"),
    ({"custom_id": ["c"]}, 400, "`custom_id` - use `custom_ids`"),
    ({"application_profile_ids": IDS}, 400, "use `profile_ids`"),
    ({"profile_ids": P1}, 400, "Expected `array`, got `str` - at `$.profile_ids`"),
    ({"profile_ids": None}, 400, "$.profile_ids"),
    ({"profile_ids": [P1, P1, 3]}, 400, "Expected `str`, got `int` - at `$.profile_ids[2]`"),
    ({"profile_ids": [P1] * 10_001}, 400, "length <= 10000 - at `$.profile_ids`"),
    ({"custom_ids": ["c"] * 10_001}, 400, "length <= 10000 - at `$.custom_ids`"),
]


@pytest.mark.parametrize("method", ["POST", "DELETE"])
@pytest.mark.parametrize(("body", "status", "expected"), BAD_IDS)
async def test_bad_lists_of_members_are_refused_and_nothing_changes(
    admin: Client, method: str, body: object, status: int, expected: str
) -> None:
    group = await admin.group()
    await admin.post(f"{GROUPS}/{group}/members/", {"profile_ids": IDS})

    answer = await admin.call(method, f"{GROUPS}/{group}/members/", body, status=status)

    assert expected in text_of(answer.content)
    members = (await admin.get(f"{GROUPS}/{group}/members/")).body
    assert [member.id for member in members.results] == IDS


def pair(**fields: object) -> dict[str, object]:
    return {"pairs": [{"profile_id": P1, "group_id": "g"}, fields]}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "A JSON body is required"),
        ({}, "missing required field `pairs`"),
        ({"pairs": [{"profile_id": P1, "group_id": "g"}] * 10_001}, "$.pairs"),
        (pair(profile_id=P1), "`group_id` - at `$.pairs[1]`"),
        (pair(group_id="g"), "not both and not neither - at `$.pairs[1]`"),
        (pair(group_id="g", profile_id=P1, custom_id="c"), "not both and not neither"),
        (pair(group_id="g", profile_id="17"), "'17' is not a UUID - at `$.pairs[1].profile_id`"),
        (pair(group_id=1, profile_id=P1), "$.pairs[1].group_id"),
    ],
)
async def test_bad_pairs_are_refused(admin: Client, body: object, expected: str) -> None:
    answer = await admin.post(f"{DEMO}/memberships/check/", body, 400)

    assert expected in text_of(answer.content)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("page_size=0", '{"page_size":["Expected `int` >= 1 - at `$.page_size`"]}'),
        ("page_size=1001", "<= 1000"),
        ("page_size=", "$.page_size"),
        ("page_size=ten", "$.page_size"),
        ("page_size=5&page_size=6", "`page_size` is given more than once"),
        ("page_size=" + "9" * 5000, "$.page_size"),
        ("cursor=", "The cursor is not one of this list"),
        ("cursor=AAAA", "The cursor is not one of this list"),
        ("cursor=%F0%9F%92%A9", "The cursor is not one of this list"),
        ("fields=custom_id,colour", "'colour' is not a field here"),
        ("fields=", "is not a field here"),
        ("page_size=%ff", "The query string is not valid UTF-8"),
    ],
)
async def test_bad_query_parameters_are_refused(admin: Client, query: str, expected: str) -> None:
    group = await admin.group()

    for path in (
        f"{GROUPS}/",
        f"{GROUPS}/{group}/members/",
        f"{DEMO}/profiles/{P1}/profile-groups/",
    ):
        answer = await admin.get(f"{path}?{query}", 400)
        assert expected in text_of(answer.content)


@pytest.mark.parametrize("content_type", ["text/plain;charset=UTF-8", "application/xml", "", "x"])
async def test_a_body_is_json_whatever_the_content_type_says(
    admin: Client, content_type: str
) -> None:
    headers = {"Content-Type": content_type}
    group = (await admin.post(f"{GROUPS}/", GROUP, 201, headers=headers)).body.id
    await admin.post(f"{GROUPS}/{group}/members/", {"profile_ids": IDS}, headers=headers)
    await admin.call(
        "DELETE", f"{GROUPS}/{group}/members/", {"profile_ids": IDS}, status=204, headers=headers
    )

    assert (await admin.get(f"{GROUPS}/{group}/")).body.profile_count == 0


async def test_a_coded_body_is_415(admin: Client) -> None:
    headers = {"Content-Encoding": "gzip"}
    answer = await admin.post(f"{GROUPS}/", GROUP, 415, headers=headers)

    assert answer.body.error_code == "unsupported_media_type"
    await admin.post(f"{GROUPS}/", GROUP, 201, headers={"Content-Encoding": "identity"})


TEXTS = ["é😀", "{}", "a:b", "a/b", "%2F", "a b+c", "..", "?#&=", "\\", '"', "\u2028", "\x01"]


@pytest.mark.parametrize("text", TEXTS)
async def test_any_text_but_nul_may_stand_in_custom_ids_and_attributes(
    admin: Client, text: str
) -> None:
    pairs = [{"key": text, "value": text}]
    group = (
        await admin.post(f"{GROUPS}/", {"name": text, "custom_id": text, "attributes": pairs}, 201)
    ).body
    path = f"{GROUPS}/{quoted(text)}"

    assert group == (await admin.get(f"{path}/")).body
    assert group == (await admin.get(path)).body
    assert [group] == (await admin.get(f"{GROUPS}/?custom_id={quoted(text)}")).body.results
    assert [group] == (await admin.get(f"{GROUPS}/?name={quoted(text)}")).body.results
    both = f"{quoted(text)}:{quoted(text)}"
    assert [group] == (await admin.get(f"{GROUPS}/?attributes={both}")).body.results
    await admin.post(f"{path}/members/", {"custom_ids": [text]})
    member = (await admin.get(f"{path}/members/{quoted(text)}/")).body
    assert text == member.custom_id
    await admin.delete(path)
    await admin.get(path, 404)


async def test_a_path_that_is_no_utf_8_is_400(admin: Client) -> None:
    answer = await admin.get(f"{GROUPS}/%ff%fe/", 400)

    assert answer.body.detail == "The path is not valid UTF-8."


async def test_empty_segments_are_404(admin: Client) -> None:
    for path in (f"{GROUPS}//", f"{GROUPS}//members/", "/api/v1/applications//profile-groups/"):
        await admin.get(path, 404)


async def test_a_body_over_8_mib_is_413_and_one_of_8_mib_is_read(admin: Client) -> None:
    start = b'{"name":"n","description":"'
    exact = start + b"x" * (BODY_LIMIT_BYTES - len(start) - 2) + b'"}'
    assert len(exact) == BODY_LIMIT_BYTES

    assert "$.description" in text_of((await admin.post(f"{GROUPS}/", exact, 400)).content)
    answer = await admin.post(f"{GROUPS}/", exact + b" ", 413)
    assert answer.body.error_code == "too_large"
    await admin.post(f"{GROUPS}/", b"x" * (9 * 1024 * 1024), 413)


async def test_a_body_over_8_mib_in_chunks_is_413_and_read_only_so_far(api: Api) -> None:
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 65_536
            yield b" " * 65_536

    status, body = await asgi(api, "POST", f"{GROUPS}/", chunks())

    assert (status, body["error_code"]) == (413, "too_large")
    assert sent <= BODY_LIMIT_BYTES + DISCARD_LIMIT_BYTES + 4 * 65_536


async def test_a_body_that_is_refused_is_read_so_that_the_client_can_read_the_answer(
    api: Api,
) -> None:
    # Seen with urllib, which asks for the connection to be closed: reset while it was sending.
    left = 20

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal left
        while left:
            left -= 1
            yield b" " * 65_536

    status, _ = await asgi(api, "POST", f"{DEMO}/nothing/", chunks())

    assert (status, left) == (404, 0)


async def test_a_refused_body_that_never_comes_is_not_waited_for_long(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_module, "DISCARD_SECONDS", 0.05)

    async def chunks() -> AsyncIterator[bytes]:
        yield b" "
        await asyncio.sleep(3600)

    assert (await asgi(api, "POST", f"{DEMO}/nothing/", chunks()))[0] == 404


async def test_a_body_in_chunks_is_read_whole(api: Api) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for byte in json.dumps({"name": "in chunks"}).encode():
            yield bytes([byte])

    status, body = await asgi(api, "POST", f"{GROUPS}/", chunks())

    assert (status, body["name"]) == (201, "in chunks")


async def test_a_query_string_with_raw_bytes_is_400_when_they_are_no_utf_8(api: Api) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        yield b""

    path = f"{GROUPS}/"
    assert (await asgi(api, "GET", path, nothing(), query=b"name=\xff"))[0] == 400
    assert (await asgi(api, "GET", path, nothing(), query="name=é".encode()))[0] == 200


async def test_others_run_between_the_slices_of_a_long_list() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    assert list(range(2000)) == await stepwise(list, range(2000))
    task.cancel()

    assert turns >= 3


@pytest.mark.parametrize(
    ("at_us", "expected"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (1_745_842_609_670_053, "2025-04-28T12:16:49.670053Z"),
        (1_709_251_199_999_999, "2024-02-29T23:59:59.999999Z"),
        (4_102_444_800_000_001, "2100-01-01T00:00:00.000001Z"),
    ],
)
def test_timestamps_have_six_digits_and_z(at_us: int, expected: str) -> None:
    assert expected == timestamp(at_us)


def text_of(content: bytes) -> str:
    """The compact JSON, with escaped quotes as they were meant."""
    return content.decode().replace('\\"', '"')


def quoted(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())


async def asgi(
    api: Api, method: str, path: str, chunks: AsyncIterator[bytes], query: bytes = b""
) -> tuple[int, dict[str, Any]]:
    """Call the application as a server does that reads the body bit by bit."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        try:
            return {"type": "http.request", "body": await anext(chunks), "more_body": True}
        except StopAsyncIteration:
            return {"type": "http.request", "body": b"", "more_body": False}

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "root_path": "",
        "headers": [
            (b"host", b"belong.test"),
            (b"authorization", f"Bearer {api.admin.token}".encode()),
        ],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    application: Callable[..., Awaitable[None]] = api.conductor.app
    await application(scope, receive, send)
    content = b"".join(event.get("body", b"") for event in sent[1:])
    return sent[0]["status"], json.loads(content)


# --- the Group Identity face


class Rule(msgspec.Struct):
    """What the probe below reads. More members are fine."""

    name: str


class Choice(msgspec.Struct):
    """Its query parameters."""

    size: Annotated[int, msgspec.Meta(ge=1)] = 1


class Ruled(Resource):
    """A route of which it is known what it does."""

    @endpoint("definitions:write", body=Rule, query=Choice, status=HTTPStatus.ACCEPTED)
    async def on_post(self, call: TenantCall, body: Rule, query: Choice) -> None:
        """Do nothing, or break in the way that the name says."""
        if body.name == "rule":
            raise Unprocessable("The name is a rule.")
        if body.name == "bug":
            raise ZeroDivisionError
        call.response.set_header("X-Size", str(query.size))

    @endpoint("definitions:read")
    async def on_get(self, call: TenantCall) -> bytes:
        """Say which path it was reached by."""
        return msgspec.json.encode(call.request.path)


RULED = "/platform/workspaces/1/ruled"


@pytest.fixture
async def ruled(valkey: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Api]:
    """An API with the route of `Ruled`, too."""
    route = ("/platform/workspaces/{ws}/ruled", Ruled)
    monkeypatch.setattr(app, "ROUTES", (*app.ROUTES, route))
    async with opened(valkey.url) as made:
        yield made


async def test_what_breaks_a_rule_is_422_and_what_is_malformed_400(ruled: Api) -> None:
    for body, status, code, expected in (
        ({"name": "rule"}, 422, "VALIDATION_ERROR", "The name is a rule."),
        ({"name": 1}, 400, "BAD_REQUEST", "Expected `str`, got `int` - at `$.name`"),
        ({}, 400, "BAD_REQUEST", "Object missing required field `name`"),
        (b"", 400, "BAD_REQUEST", "A JSON body is required, and this one is empty."),
        (b'{"name":NaN}', 400, "BAD_REQUEST", "The body is not JSON: invalid character (byte 8)."),
        (b'{"name":"\xff"}', 400, "BAD_REQUEST", "The body is not valid UTF-8."),
    ):
        answer = await ruled.admin.post(RULED, body, status)
        assert (code, expected) == (answer.body.error_code, answer.body.detail)


async def test_accepted_is_202_without_a_body_and_unknown_names_are_passed_over(
    ruled: Api,
) -> None:
    body = {"name": "fine", "colour": "red"}
    answer = await ruled.admin.post(f"{RULED}?size=3&accountId=1&size2=x&&=", body, 202)

    assert (b"", "0", "3") == (
        answer.content,
        answer.headers["content-length"],
        answer.headers["x-size"],
    )
    # But what is known has to fit.
    for query in ("size=0", "size=1&size=2", "size=%ff", "%ff=1"):
        await ruled.admin.post(f"{RULED}?{query}", body, 400)
    # On the other face nobody may count on what it would do.
    await ruled.admin.get(f"{GROUPS}/none/?accountId=1", 400)
    await ruled.admin.get(f"{RULED}?accountId=1")


async def test_whatever_is_refused_has_the_shape_of_the_group_identity_face(ruled: Api) -> None:
    coded = {"Content-Encoding": "gzip"}
    admin, long = ruled.admin, b" " * (BODY_LIMIT_BYTES + 1)
    for answer, code, expected in (
        (await admin.get("/platform/nothing", 404), "NOT_FOUND", "Not found."),
        (await admin.get("/v2", 404), "NOT_FOUND", "Not found."),
        (await admin.get("/v1/nothing/here", 404), "NOT_FOUND", "Not found."),
        (await admin.get("/userprofile/v1/1/2/3", 404), "NOT_FOUND", "Not found."),
        (await admin.get("/platform/workspaces//ruled", 404), "NOT_FOUND", "Not found."),
        (
            await admin.call("PATCH", RULED, status=405),
            "METHOD_NOT_ALLOWED",
            'Method "PATCH" not allowed.',
        ),
        (
            await admin.post(RULED, {"name": "n"}, 415, headers=coded),
            "UNSUPPORTED_MEDIA_TYPE",
            "Bodies are taken as they are: send them without Content-Encoding.",
        ),
        (
            await admin.post(RULED, long, 413),
            "PAYLOAD_TOO_LARGE",
            "The body may have 8388608 bytes (8 MiB) at most.",
        ),
        (
            await admin.get("/platform/workspaces/%ff/ruled", 400),
            "BAD_REQUEST",
            "The path is not valid UTF-8.",
        ),
    ):
        assert (code, expected) == (answer.body.error_code, answer.body.detail)
    refused = await admin.call("PATCH", RULED, status=405)
    assert "GET, POST, OPTIONS, HEAD" == refused.headers["allow"]


async def test_a_bug_is_a_500_in_the_shape_of_the_face(
    ruled: Api, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await ruled.admin.post(RULED, {"name": "bug"}, 500)

    assert answer.body.error_code == "INTERNAL"
    assert answer.headers["x-request-id"] in answer.body.detail
    assert "ZeroDivisionError" in caplog.text


async def test_a_store_that_is_not_there_is_a_503_in_the_shape_of_the_face(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "ROUTES", (("/platform/workspaces/{ws}/ruled", Ruled),))
    # Not entered, so that the store is never opened.
    unopened = falcon.testing.ASGIConductor(app.create_app(Config(redis_url=valkey.url)))
    answer = await unopened.simulate_get(RULED, headers={"Authorization": "Bearer x"})

    problem = {"code": "SERVICE_UNAVAILABLE", "message": "The store has not answered yet."}
    assert {"statusCode": 503, "errors": [problem]} == answer.json
    assert "1" == answer.headers["retry-after"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v2//events", "/v2/events"),
        ("//events/", "/events"),
        ("//v2//bulkevents/historical", "/v2/bulkevents/historical"),
        ("/v2///bulkevents", "/v2/bulkevents"),
        ("/v2//eventsource", "/v2//eventsource"),
        ("/v2//nothing", "/v2//nothing"),
        ("/v2/bulkevents//historical", "/v2/bulkevents//historical"),
        ("//healthz", "//healthz"),
        ("/api/v1/applications//profile-groups", "/api/v1/applications//profile-groups"),
        ("/v2//%65vents", "/v2/events"),
        ("/v2/%2Fevents", "/v2/\udc2fevents"),
    ],
)
def test_a_host_that_ends_in_a_slash_reaches_what_it_was_meant_to(path: str, expected: str) -> None:
    """mParticle's SDKs append `/events` to the host that they were given."""
    scope = falcon.testing.create_scope(path=unquote(path)) | {"raw_path": path.encode()}
    options = falcon.RequestOptions()
    options.strip_url_path_trailing_slash = True

    assert expected == Request(scope, nothing_comes, options=options).path


async def nothing_comes() -> None:
    raise AssertionError


async def test_pages_of_other_origins_get_nothing_of_the_group_identity_face(ruled: Api) -> None:
    origin = {"Origin": "https://page.test"}
    for path in (RULED, "/platform/nothing", "/v2/events"):
        for method in ("GET", "OPTIONS"):
            answer = await ruled.conductor.simulate_request(
                method, path, headers=origin | {"Authorization": f"Bearer {ruled.admin.token}"}
            )
            found = [name for name in answer.headers if name.startswith("access-control-")]
            assert [] == found
