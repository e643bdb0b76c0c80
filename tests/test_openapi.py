"""The OpenAPI document: valid, complete, nothing beyond what there is; its examples are true."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import falcon.testing
import msgspec
import openapi_schema_validator
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from service import auth, examples_identity, openapi
from service.app import create_app, operations
from service.config import Config
from service.examples import ADMIN, ORIGIN, REFUSALS, Example
from service.faces import IDENTITY_CODES, is_identity
from service.openapi import EXAMPLES
from service.registry import SCOPES
from tests.client import GROUPS, HOST, P2, Api
from tests.serving import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.endpoint import Operation
    from tests import backings

DOCUMENT = openapi.document(operations())
OPERATIONS = {
    (method.upper(), path): operation
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
}
SHARED = DOCUMENT["components"]["responses"]
BY_NAME = {each["operationId"]: each for each in OPERATIONS.values()}
VARIES = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    r"|\b[0-9a-f]{32}\b"
    r"|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3,6}Z"
    r"|(?<=cursor=)[\w-]+"
    r"|(?<=Profile )[0-9a-f]{8}$"
    r"|^eyJ[\w.-]+$"
)
"""What is another one at every playing of the examples: ids, times, cursors, tokens."""
FROM = 10**12
"""And numbers from here on: mpids, and times in milliseconds."""


def test_the_document_is_valid_openapi() -> None:
    errors = [error.message for error in OpenAPIV31SpecValidator(DOCUMENT).iter_errors()]
    assert [] == errors


def test_every_operation_is_in_the_document_and_nothing_else() -> None:
    there_are = {(method, openapi.written(path)) for method, path, _ in operations()}
    assert there_are == OPERATIONS.keys()


def test_every_reference_leads_somewhere() -> None:
    for node in nodes(DOCUMENT):
        if "$ref" in node:
            found: Any = DOCUMENT
            for step in node["$ref"].removeprefix("#/").split("/"):
                found = found[step]
            assert found
        if "operationId" in node and "parameters" in node and "responses" not in node:
            assert node["operationId"] in BY_NAME


def test_every_component_is_used() -> None:
    used = {node["$ref"] for node in nodes(DOCUMENT) if "$ref" in node}
    schemes = {name for each in BY_NAME.values() for one in each["security"] for name in one}
    for kind, members in DOCUMENT["components"].items():
        if kind != "securitySchemes":
            assert {f"#/components/{kind}/{name}" for name in members} - used == set()
    assert DOCUMENT["components"]["securitySchemes"].keys() - {"profile_token"} <= schemes


def test_every_field_of_every_struct_has_a_type() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        for field, described in schema.get("properties", {}).items():
            assert described.keys() & {"type", "anyOf", "oneOf", "enum", "$ref"}, (name, field)


def test_every_parameter_says_what_it_is() -> None:
    for (method, path), operation in OPERATIONS.items():
        placed = re.findall(r"{(\w+)}", path)
        described = [each for each in operation["parameters"] if "$ref" not in each]
        assert placed == [each["name"] for each in described if each["in"] == "path"]
        for each in described:
            assert re.fullmatch(r"[A-Z`].{10,}", each["description"], re.DOTALL), (path, each)
            assert each["schema"].keys() & {"type", "enum"}, (method, path, each)


def test_a_parameter_that_may_be_repeated_is_an_exploded_array_with_its_limit() -> None:
    [attributes] = [
        each for each in BY_NAME["list_groups"]["parameters"] if each.get("name") == "attributes"
    ]
    assert ("form", True, "array", 100) == (
        attributes["style"],
        attributes["explode"],
        attributes["schema"]["type"],
        attributes["schema"]["maxItems"],
    )


@pytest.mark.parametrize("route", list(operations()), ids=lambda route: f"{route[0]} {route[1]}")
def test_who_may_call_is_what_the_route_table_says(route: tuple[str, str, Operation]) -> None:
    method, path, operation = route
    security = OPERATIONS[method, openapi.written(path)]["security"]
    if operation.scope is None:
        assert all(not scopes for one in security for scopes in one.values())
        assert operation.own == (security != [] and {} not in security)
        return
    scopes = [operation.scope, *operation.also]
    assert {"oauth2": scopes} in security
    assert {"token": scopes} in security
    assert operation.own == ({"profile_token": []} in security)


def test_every_scope_is_listed_and_described() -> None:
    flow = DOCUMENT["components"]["securitySchemes"]["oauth2"]["flows"]["clientCredentials"]
    assert list(SCOPES) == list(flow["scopes"])
    assert f"{ORIGIN}/oauth/token" == flow["tokenUrl"]
    assert ["Read groups.", "Everything."] == [flow["scopes"][s] for s in ("groups:read", "admin")]


def test_names_of_operations_are_unique_and_come_from_the_examples() -> None:
    assert len(OPERATIONS) == len(BY_NAME)
    assert {each.operation for each in EXAMPLES} == BY_NAME.keys()


def test_every_operation_shows_a_request_and_an_answer() -> None:
    for name, operation in BY_NAME.items():
        told = [each for each in EXAMPLES if each.operation == name]
        success = min(operation["responses"])
        for media in operation["responses"][success].get("content", {}).values():
            assert media["examples"], name
        assert any(str(each.status) == success for each in told), name
        for media in operation.get("requestBody", {}).get("content", {}).values():
            assert media["examples"], name


def test_a_row_may_lack_fields_only_where_the_list_takes_the_parameter_fields() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    for name, schema in schemas.items():
        if name.endswith("Row"):
            whole = schemas.get(name.removesuffix("Row"), schema)
            assert "required" not in schema
            assert whole["properties"] == schema["properties"]
            page = schemas[f"{name.removesuffix('Row')}Page"]
            assert f"#/components/schemas/{name}" == page["properties"]["results"]["items"]["$ref"]


def test_every_answer_that_asks_to_wait_or_to_authenticate_has_the_header() -> None:
    for operation in BY_NAME.values():
        for status, response in operation["responses"].items():
            name = response.get("$ref", "").rpartition("/")[2]
            headers = (SHARED[name] if name else response).get("headers", {})
            assert ("Retry-After" in headers) == (status in ("429", "503")), status
            assert ("WWW-Authenticate" in headers) == (status == "401"), status


def test_errors_have_the_shape_of_the_face_that_the_path_belongs_to() -> None:
    for (_, path), operation in OPERATIONS.items():
        for status, response in operation["responses"].items():
            name = response.get("$ref", "").rpartition("/")[2]
            whole = SHARED[name] if name else response
            if int(status) >= 400 and path != "/oauth/token":
                schema = whole["content"]["application/json"]["schema"]["$ref"]
                assert is_identity(path) == schema.endswith("/Problems"), (path, status)
                assert path.startswith("/api/") <= schema.endswith("/Refusal"), (path, status)


def test_what_tells_of_limits_and_jobs_stands_where_it_is_sent() -> None:
    for (method, path), operation in OPERATIONS.items():
        for status, response in operation["responses"].items():
            name = response.get("$ref", "").rpartition("/")[2]
            headers = (SHARED[name] if name else response).get("headers", {})
            identity = is_identity(path)
            used, exceeded = (f"X-mp-rate-limit-{each}" for each in ("percentage-used", "exceeded"))
            assert (identity and int(status) < 300) == (used in headers), (path, status)
            assert (identity and status == "429") == (exceeded in headers), (path, status)
            changes = method in ("POST", "PUT", "DELETE") and operation["tags"] == ["Definitions"]
            assert (changes and int(status) < 300) == ("X-Belong-Job" in headers), (path, status)


def test_events_may_be_sent_with_a_credential_or_with_a_token() -> None:
    assert [
        {"oauth2": ["events:write"]},
        {"token": ["events:write"]},
        {"basic": ["events:write"]},
    ] == BY_NAME["upload_events"]["security"]
    with_basic = {name for name, each in BY_NAME.items() if {"basic": []} in each["security"]}
    assert {"create_token"} == with_basic


def test_no_operation_of_the_group_identity_face_asks_for_a_client_id() -> None:
    for (_, path), operation in OPERATIONS.items():
        names = {each.get("name") for each in operation["parameters"]}
        assert not (is_identity(path) and "client_id" in names), path
    assert ["integer", "integer"] == [
        each["schema"]["type"]
        for each in BY_NAME["get_user"]["parameters"]
        if each.get("name") in ("ws", "mpid")
    ]


def test_what_has_to_be_given_is_required_though_its_struct_has_a_default() -> None:
    [fields] = [each for each in BY_NAME["get_user"]["parameters"] if each.get("name") == "fields"]
    assert fields["required"]
    assert "default" not in fields["schema"]
    schemas = DOCUMENT["components"]["schemas"]
    assert {"$ref": "#/components/schemas/Identity"} == (
        schemas["ResolveBody"]["properties"]["identity"]
    )


def test_a_created_group_links_to_what_can_be_done_with_it() -> None:
    links = BY_NAME["create_group"]["responses"]["201"]["links"]
    assert {
        "get_group",
        "update_group",
        "replace_group",
        "delete_group",
        "list_members",
        "add_members",
        "remove_members",
    } <= links.keys()
    assert {"cid": "$request.path.cid", "gid": "$response.body#/id"} == (
        links["add_members"]["parameters"]
    )
    listed = BY_NAME["list_groups"]["responses"]["200"]["links"]
    assert "$response.body#/results/0/id" == listed["get_group"]["parameters"]["gid"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda each: f"{each.operation}: {each.summary}")
def test_examples_are_what_the_schemas_say(example: Example) -> None:
    operation = BY_NAME[example.operation]
    if example.body is not None and example.status < 400:
        media = operation["requestBody"]["content"][example.media]
        conforms(example.body, media["schema"])
        assert example.body in [each["value"] for each in media["examples"].values()]
    if example.reply is not None:
        response = operation["responses"][str(example.status)]
        [(kind, media)] = response["content"].items()
        assert example.reply in [each["value"] for each in media["examples"].values()]
        if example.whole and kind == "application/json":
            conforms(example.reply, media["schema"])


async def test_what_is_said_with_the_common_statuses_is_what_the_document_shows(
    api: Api, valkey: backings.Server
) -> None:
    await api.store.registry.create_application("slow")
    await api.store.registry.update_application("slow", requests_per_second=1)
    await api.store.registry.create_application("elsewhere")
    slow = await api.client("admin", applications=("slow",))
    elsewhere = await api.client("admin", applications=("elsewhere",))
    await api.admin.group("Gold", custom_id="gold")
    taken, coded = {"name": "n", "custom_id": "gold"}, {"Content-Encoding": "gzip"}
    path = "/api/v1/applications/slow/profile-groups/"
    answers = [
        await api.admin.post(f"{GROUPS}/", b"", 400),
        await api.admin.using(None).get(f"{GROUPS}/", 401),
        await elsewhere.get(f"{GROUPS}/", 403),
        await api.admin.get(f"{GROUPS}/none/", 404),
        await api.admin.post(f"{GROUPS}/", taken, 409),
        await api.admin.post(f"{GROUPS}/", b" " * (8 * 1024 * 1024 + 1), 413),
        await api.admin.post(f"{GROUPS}/", taken, 415, headers=coded),
        *[await slow.call("GET", path) for _ in range(2)][1:],
    ]
    # Not entered, so that the store is never opened.
    unopened = falcon.testing.ASGIConductor(create_app(Config(redis_url=valkey.url)))
    unavailable = await unopened.simulate_get(f"{GROUPS}/")

    bodies = {each.status: each.plain for each in answers} | {503: unavailable.json}
    assert bodies.keys() == REFUSALS.keys()
    for status, body in bodies.items():
        assert body == shown(HTTPStatus(status).phrase.replace(" ", ""))


async def test_what_the_group_identity_face_says_with_them_is_what_the_document_shows(
    api: Api, valkey: backings.Server
) -> None:
    other = await api.store.registry.create_application("slow")
    await api.store.registry.update_application("slow", requests_per_second=1)
    slow = await api.client("admin", applications=("slow",))
    path, theirs = (f"/platform/workspaces/{ws}/groups" for ws in (1, other.workspace_id))
    new, coded = {"id": "household", "source_user_attribute": "$address"}, {"Content-Encoding": "x"}
    await api.admin.post(path, new)
    answers = [
        await api.admin.post(path, b"", 400),
        await api.admin.using(None).get(path, 401),
        await api.admin.get(theirs, 403),
        await api.admin.get(f"{path}/family", 404),
        await api.admin.post(path, b" " * (8 * 1024 * 1024 + 1), 413),
        await api.admin.post(path, new, 415, headers=coded),
        await api.admin.post(path, new, 422),
        *[await slow.call("GET", theirs) for _ in range(2)][1:],
    ]
    unopened = falcon.testing.ASGIConductor(create_app(Config(redis_url=valkey.url)))
    unavailable = await unopened.simulate_get(path)

    bodies = {each.status: each.plain for each in answers} | {503: unavailable.json}
    assert bodies.keys() == examples_identity.REFUSALS.keys()
    for status, body in bodies.items():
        name = IDENTITY_CODES[HTTPStatus(status)].title().replace("_", "")
        assert body == shown(f"Identity{name}")


def shown(response: str) -> object:
    return SHARED[response]["content"]["application/json"]["example"]


async def test_the_document_names_the_server_as_the_client_does(api: Api) -> None:
    answer = await api.conductor.simulate_get("/openapi.json", host="other.test", port=8000)

    assert [{"url": "http://other.test:8000"}] == answer.json["servers"]
    assert ORIGIN not in answer.text
    bad = await api.conductor.simulate_get("/openapi.json", host="a/b")
    assert (400, "invalid") == (bad.status_code, bad.json["error_code"])


def test_every_process_makes_the_same_document() -> None:
    """Else the entity tag of one worker would be unknown to the other."""
    program = (
        "import json; from service import app, openapi; "
        "print(json.dumps(openapi.document(app.operations())))"
    )
    made = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in "12"
    }
    assert {json.dumps(DOCUMENT) + "\n"} == made


async def test_the_examples_are_answered_as_they_say(api: Api) -> None:
    """Play the story: what varies is bound where it comes first, and has to come again there."""
    credential, secret = await api.store.registry.create_credential(
        applications=["demo"], scopes=["groups:read", "members:read"]
    )
    admin = await auth.mint(
        api.store.registry,
        applications=["demo"],
        scopes=["admin"],
        subject=credential.id,
        credential=credential.id,
    )
    form = next(each.body for each in EXAMPLES if each.operation == "create_token")
    story = Story(
        {
            ORIGIN: HOST,
            ADMIN: admin,
            form["client_id"]: credential.id,
            form["client_secret"]: secret,
            P2: P2,
        }
    )
    for example in EXAMPLES:
        result = await api.conductor.simulate_request(
            example.method,
            story.real(example.path),
            body=story.body(example),
            headers={"Content-Type": example.media} | authorization(example, story),
            host="belong.test",
            port=8000,
        )
        where = f"{example.operation}: {example.summary}"
        assert example.status == result.status_code, (where, result.text)
        if example.reply is None:
            assert not result.content
            continue
        kind = result.headers["content-type"]
        if kind == "application/json":
            story.compare(example.reply, msgspec.json.decode(result.content), example.whole, where)
        else:
            assert example.reply in result.text, where
            assert not example.whole or example.reply == result.text


def authorization(example: Example, story: Story) -> dict[str, str]:
    security = BY_NAME[example.operation]["security"]
    token = example.token or (ADMIN if security and {} not in security else None)
    return {} if token is None else {"Authorization": f"Bearer {story.real(token)}"}


class Story:
    """What is called how in the examples, and how here."""

    def __init__(self, known: dict[str, str]) -> None:
        self._known = known

    def real(self, text: str) -> str:
        for told, real in self._known.items():
            text = text.replace(told, real)
        return text

    def body(self, example: Example) -> bytes | None:
        if example.body is None:
            return None
        if example.media == "application/x-www-form-urlencoded":
            return self.real(urlencode(example.body)).encode()
        if isinstance(example.body, str):
            return self.real(example.body).encode()
        return self.real(msgspec.json.encode(example.body).decode()).encode()

    def compare(self, told: Any, real: Any, whole: bool, where: str) -> None:
        """Hold an answer against the example, member by member."""
        if isinstance(told, dict):
            assert isinstance(real, dict), where
            assert (told.keys() == real.keys()) if whole else (told.keys() <= real.keys()), where
            for name, value in told.items():
                self.compare(value, real[name], whole, f"{where}, {name}")
        elif isinstance(told, list):
            assert len(told) == len(real), where
            for place, value in enumerate(told):
                self.compare(value, real[place], whole, f"{where}, {place}")
        elif isinstance(told, str) and isinstance(real, str):
            for mine, theirs in zip(VARIES.findall(told), VARIES.findall(real), strict=True):
                assert self._known.setdefault(mine, theirs) == theirs, where
            assert self.real(told) == real, where
        elif isinstance(told, int) and told > FROM:
            assert isinstance(real, int), where
            assert self._known.setdefault(str(told), str(real)) == str(real), where
        else:
            assert told == real, where


def conforms(value: Any, schema: dict[str, Any]) -> None:
    """Validate a value against a schema of the document."""
    whole = schema | {"components": DOCUMENT["components"]}
    openapi_schema_validator.validate(value, whole, cls=openapi_schema_validator.OAS31Validator)


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Give every object of a document."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from nodes(value)
    elif isinstance(node, list):
        for value in node:
            yield from nodes(value)
