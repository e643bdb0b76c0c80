"""The OpenAPI document (`/openapi.json`): made of the route table, the structs and the examples.

What is written here is only what neither of them says: what a path parameter names, what a status
means, and which field of an answer names what the next call needs (links). A route that is added
to the table appears by itself, once, however many addresses it has.
"""

from __future__ import annotations

import hashlib
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, get_args, get_origin

import msgspec

from service import (
    __version__,
    examples,
    examples_audiences,
    examples_dynamic,
    examples_identity,
    examples_queries,
    schemas,
)
from service.endpoint import API, ENCODER, JSON, Operation, Resource, endpoint
from service.errors import BelongError
from service.examples import ORIGIN, Example
from service.faces import CODES, IDENTITY_CODES, is_identity
from service.openapi_parts import (
    CLIENT_ID,
    HEADERS,
    OWN_IDENTITY,
    REQUEST_ID_PARAMETER,
    SECURITY,
)
from service.paging import PageBody, origin
from service.schemas import Json, ref

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from service.admission import Call

Route = tuple[str, str, Operation]

VERSION = "3.1.1"

EXAMPLES = (
    *examples.EXAMPLES,
    *examples_identity.EXAMPLES,
    *examples_dynamic.EXAMPLES,
    *examples_queries.EXAMPLES,
    *examples_audiences.EXAMPLES,
)
"""All of them, in the order in which they tell their story."""

INTRODUCTION = """\
Membership of profiles in groups: *is this profile in this group, which groups is this profile in,
who is in this group?* Two APIs speak of the same profiles: Profile Groups, under `/api/v1`, and
Group Identity, under `/platform`, `/v2` and `/userprofile`, by which users who share an attribute
become a group by themselves.

Paths work with and without the trailing slash, and never redirect. HEAD is answered as GET, without
the body. Bodies are JSON in UTF-8, whatever the content type says, on DELETE too. Under `/api/v1`
unknown fields of a body and unknown query parameters are refused, in the Group Identity API they
are ignored. What stands under `/platform/workspaces` is reached under `/platform/v2/workspaces` and
`/platform/experimental/workspaces`, too, and `/v2/events` and `/v2/bulkevents` without the `/v2`.

Errors are `{"detail", "error_code"}`, or `{"field": ["message"]}` where one field does not fit; in
the Group Identity API `{"statusCode", "errors": [{"code", "message"}]}`; at `/oauth/token` those of
RFC 6749. A 503 says that the store could not be reached: after a write the outcome is then unknown,
and repeating is safe. A path that is none of these is 404, a method that a path does not have is
405; both have the shape of errors.

Lists are pages: follow `next` and `previous` as they are given. With `fields` a row has only the
fields that were asked for.
"""

PARAMETERS = {
    "account": "Id of an account, as mParticle has them. Whatever stands there is passed over.",
    "aid": "An audience, by its id.",
    "cid": "Client id of the application.",
    "did": "A group definition: the id that it was created with.",
    "file": "Name of a file that the page consists of.",
    "gid": "A group: its id or, if no group has that id, its custom id.",
    "iid": "An instance of the definition, by its id.",
    "jid": "A job, by its id.",
    "mpid": "A user: the mpid, a number of 64 bits with a sign.",
    "org": "Id of an organization, as mParticle has them. Whatever stands there is passed over.",
    "pid": "A profile: its id or custom id. A text in the form of a UUID is taken as the id.",
    "ws": "Id of the workspace: an integer, which the application has beside its client id.",
}
"""What path parameters name."""

INTEGERS = {"aid", "mpid", "ws"}
"""Path parameters that are integers of 64 bits."""

MEANINGS = {
    HTTPStatus.BAD_REQUEST: "The request is malformed; the message says where, and what fits.",
    HTTPStatus.UNAUTHORIZED: "There is no token, or it is not valid (any more).",
    HTTPStatus.FORBIDDEN: "The token is not for this application, or lacks the scope.",
    HTTPStatus.NOT_FOUND: "What the path names does not exist, or is inactive.",
    HTTPStatus.CONFLICT: "It contradicts what is there, for instance a custom id that is taken.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is longer than the limit.",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The body is compressed.",
    HTTPStatus.UNPROCESSABLE_ENTITY: "It is well-formed and breaks a rule; the message says which.",
    HTTPStatus.TOO_MANY_REQUESTS: "The caller did this too often.",
    HTTPStatus.SERVICE_UNAVAILABLE: (
        "The store cannot answer now. Repeating is safe; after a write the outcome is unknown."
    ),
}
"""What the statuses of errors mean."""

IDENTITY_MEANINGS = MEANINGS | {
    HTTPStatus.UNAUTHORIZED: "There is no token or credential, or a token that is not valid.",
    HTTPStatus.FORBIDDEN: (
        "The token or credential is not for this workspace or lacks the scope; or the credential "
        "is not valid."
    ),
    HTTPStatus.NOT_FOUND: "What the path names does not exist.",
}
"""What they mean on the Group Identity face."""

NAMES = {
    "GroupBody": {"gid": "id"},
    "MembershipBody": {"gid": "group_id"},
    "MemberBody": {"pid": "id"},
    "AddedMembers": {"pid": "successfully_added/0"},
    "ProfileBody": {"pid": "id", "cid": "client_id"},
    "DefinitionBody": {"did": "id"},
    "InstanceBody": {"iid": "id"},
    "JobBody": {"jid": "id"},
    "UserProfileBody": {"mpid": "mpid"},
}
"""Struct of an answer -> path parameters that its fields give; the first is what it is about."""

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
"""In the order in which a path is described."""

_SCOPE_STATUSES = (
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.SERVICE_UNAVAILABLE,
)


class OpenApi(Resource):
    """`/openapi.json`."""

    _made = b""

    @endpoint(None, reply=dict[str, Any], errors=(HTTPStatus.NOT_MODIFIED, HTTPStatus.BAD_REQUEST))
    async def on_get(self, call: Call) -> bytes:
        """Read this document."""
        base = origin(call.request, call.backend.config)
        if not self._made:
            self._made = ENCODER.encode(document(call.backend.operations))
        found = self._made.replace(_in_json(ORIGIN), _in_json(base))
        tag = f'"{hashlib.sha256(found).hexdigest()[:32]}"'
        call.response.set_header("ETag", tag)
        call.response.set_header("Cache-Control", "no-cache")
        if tag in (call.request.get_header("if-none-match") or ""):
            call.response.status = HTTPStatus.NOT_MODIFIED
            return b""
        return found


def _in_json(text: str) -> bytes:
    return ENCODER.encode(text)[1:-1]


def document(operations: Iterable[Route]) -> Json:
    """Give the OpenAPI document of these operations, for a server at `ORIGIN`."""
    return _Maker(list(operations)).document()


def written(path: str) -> str:
    """Give a path of the route table as we write it: with its slash, as the SDK and the README."""
    return f"{path}/" if path.startswith(API) else path


def statuses(path: str, operation: Operation) -> list[int]:
    """Give the statuses of the errors of an operation."""
    found = set(operation.errors)
    if operation.scope is not None:
        found |= {*_SCOPE_STATUSES}
    if "{" in path:
        # An empty segment names nothing; one that is no UTF-8 is malformed.
        found |= {HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND}
    if operation.query is not None:
        found.add(HTTPStatus.BAD_REQUEST)
    if operation.body is not None or operation.wire.reads is not None:
        found |= {HTTPStatus.BAD_REQUEST, HTTPStatus.UNSUPPORTED_MEDIA_TYPE}
        if JSON in operation.wire.takes:
            found.add(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    return sorted(map(int, found))


class _Maker:
    """One making of the document."""

    def __init__(self, routes: list[Route]) -> None:
        self._routes = routes
        self._names = _operation_ids(routes)
        self._shared: set[tuple[bool, int]] = set()
        """Errors that operations have in common: whether of the Group Identity face, and status."""
        self._examples: dict[str, list[Example]] = {}
        for example in EXAMPLES:
            self._examples.setdefault(example.operation, []).append(example)

    def document(self) -> Json:
        paths: Json = {written(path): {} for _, path, _ in self._routes}
        for method, path, operation in sorted(self._routes, key=_place):
            paths[written(path)][method.lower()] = self._operation(method, path, operation)
        nouns = {operation.noun: None for _, _, operation in self._routes}
        return {
            "openapi": VERSION,
            "info": {
                "title": "Belong",
                "version": __version__,
                "summary": "A self-hosted membership index.",
                "description": INTRODUCTION,
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": ORIGIN}],
            "tags": [{"name": _tag(noun)} for noun in nouns],
            "paths": paths,
            "components": {
                "schemas": schemas.components([operation for _, _, operation in self._routes]),
                "responses": {_response_name(*of): _refusal(*of) for of in sorted(self._shared)},
                "parameters": {"RequestId": REQUEST_ID_PARAMETER},
                "headers": HEADERS,
                "securitySchemes": SECURITY,
            },
        }

    def _operation(self, method: str, path: str, operation: Operation) -> Json:
        name = self._names[method, path]
        examples = self._examples.get(name, [])
        made: Json = {
            "operationId": name,
            "tags": [_tag(operation.noun)],
            "summary": operation.summary,
            "description": operation.description or None,
            "security": _security(operation),
            "parameters": [
                *_path_parameters(path, examples),
                *_query_parameters(path, operation),
                ref("parameters", "RequestId"),
            ],
            "requestBody": self._request_body(operation, examples),
            "responses": self._responses(path, operation, examples),
        }
        return {key: value for key, value in made.items() if value is not None}

    def _request_body(self, operation: Operation, examples: list[Example]) -> Json | None:
        shape = operation.body or operation.wire.reads
        if shape is None:
            return None
        content: Json = {}
        for media in operation.wire.takes:
            told = {
                each.title: {"summary": each.summary, "value": each.body}
                for each in examples
                if each.body is not None and each.media == media
            }
            content[media] = _media(media, [schemas.of(shape)], told)
        return {"required": not operation.wire.empty, "content": content}

    def _responses(self, path: str, operation: Operation, examples: list[Example]) -> Json:
        status = HTTPStatus(operation.status)
        headers = _headers(is_identity(path)) | {
            name: ref("headers", name) for name in operation.wire.headers
        }
        success: Json = {"description": status.phrase, "headers": headers}
        if operation.reply is not None:
            media = operation.wire.gives
            shapes = list(map(schemas.of, (operation.reply, *operation.wire.lines)))
            success["content"] = {media: _media(media, shapes, _told(examples, operation.status))}
        links = dict(self._links(path, operation))
        if links:
            success["links"] = links
        responses: Json = {str(operation.status): success}
        if operation.wire.accepted is not None:
            shape = schemas.of(operation.wire.accepted)
            content = {JSON: _media(JSON, [shape], _told(examples, HTTPStatus.ACCEPTED))}
            responses["202"] = {"description": "Accepted", "headers": headers, "content": content}
        for error in statuses(path, operation):
            responses[str(error)] = self._error(path, operation, error, examples)
        return responses

    def _error(self, path: str, operation: Operation, status: int, examples: list[Example]) -> Json:
        if status == HTTPStatus.NOT_MODIFIED:
            return {"description": "It is the one that `If-None-Match` names."}
        shape = operation.wire.problems.get(status)
        told = _told(examples, status)
        of = is_identity(path), status
        if shape is None and not told:
            self._shared.add(of)
            return ref("responses", _response_name(*of))
        made = _refusal(*of)
        if shape is not None:
            made["content"] = {JSON: {"schema": schemas.of(shape)}}
        if told:
            made["content"][JSON].pop("example", None)
            made["content"][JSON]["examples"] = told
        return made

    def _links(self, path: str, operation: Operation) -> Iterator[tuple[str, Json]]:
        """Give what can be called with what this operation answers."""
        shape, pointer = operation.reply, ""
        if get_origin(shape) is PageBody:
            shape, pointer = get_args(shape)[0], "results/0/"
        elif get_origin(shape) is list:
            shape, pointer = get_args(shape)[0], "0/"
        named = NAMES.get(getattr(shape, "__name__", ""))
        if named is None:
            return
        given = {name: f"$request.path.{name}" for name in _placeholders(path)}
        given |= {name: f"$response.body#/{pointer}{field}" for name, field in named.items()}
        subject = next(iter(named))
        for method, target, other in self._routes:
            needed = _placeholders(target)
            creates = other.status == HTTPStatus.CREATED
            if subject in needed and set(needed) <= given.keys() and not creates:
                name = self._names[method, target]
                parameters = {each: given[each] for each in needed}
                if other.scope is not None and "cid" not in needed and "cid" in given:
                    parameters["client_id"] = given["cid"]
                yield name, {"operationId": name, "parameters": parameters}


def _place(route: Route) -> int:
    return _METHODS.index(route[0])


def _operation_ids(routes: list[Route]) -> dict[tuple[str, str], str]:
    """Give the name of every operation: the one that its examples have.

    One without examples has its method and path for a name, until it gets them.
    """
    found = {}
    for method, path, _ in routes:
        pattern = re.compile(re.sub(r"{\w+}", "[^/]+", path) + "/?")
        named = [
            each.operation
            for each in EXAMPLES
            if each.method == method and pattern.fullmatch(each.path.partition("?")[0])
        ]
        plain = re.sub(r"\W+", "_", f"{method.lower()}{path.removeprefix(API)}").strip("_")
        found[method, path] = named[0] if named else plain
    return found


def _tag(noun: str) -> str:
    return noun.replace("_", " ").capitalize()


def _placeholders(path: str) -> list[str]:
    return re.findall(r"{(\w+)}", path)


def _path_parameters(path: str, examples: list[Example]) -> Iterator[Json]:
    pattern = re.sub(r"{(\w+)}", r"(?P<\1>[^/?]+)", path)
    match = re.match(pattern, examples[0].path) if examples else None
    for name in _placeholders(path):
        made = {
            "name": name,
            "in": "path",
            "required": True,
            "description": PARAMETERS.get(name, ""),
            "schema": {"type": "string", "minLength": 1},
        }
        if name in INTEGERS:
            made["schema"] = {"type": "integer", "format": "int64"}
        if match:
            made["example"] = int(match[name]) if name in INTEGERS else match[name]
        yield made


def _query_parameters(path: str, operation: Operation) -> Iterator[Json]:
    if operation.scope is not None and "{cid}" not in path and not is_identity(path):
        yield CLIENT_ID
    if operation.query is None:
        return
    schema = msgspec.json.schema(operation.query)
    definition = next(iter(schema["$defs"].values()))
    schemas.add_said(definition, operation.query)
    for name, each in definition["properties"].items():
        described = dict(each)
        made: Json = {
            "name": name,
            "in": "query",
            "required": name in definition["required"],
            "description": described.pop("description", ""),
        }
        if described.get("default", ...) in (None, []):
            del described["default"]
        choices = [one for one in described.pop("anyOf", []) if one != {"type": "null"}]
        if len(choices) == 1:
            described |= choices[0]
        elif choices:
            described["anyOf"] = choices
        if described.get("type") == "array":
            made |= {"style": "form", "explode": True}
        if name == "fields" and get_origin(operation.reply) is PageBody:
            names = "|".join(get_args(operation.reply)[0].__struct_fields__)
            described["pattern"] = f"^ *({names}) *(, *({names}) *)*$"
        made["schema"] = _typed(described)
        yield made


def _typed(schema: Json) -> Json:
    """Say that the values of an enumeration are texts."""
    return {"type": "string"} | schema if "enum" in schema else schema


def _media(media: str, shapes: list[Json], told: Json) -> Json:
    """Describe a body. What is no JSON document is a text, for which `x-line` has the lines."""
    made: Json = {"schema": shapes[0]}
    if media.endswith("ndjson"):
        names = [schema["$ref"].rpartition("/")[2] for schema in shapes]
        text = f"Lines of JSON, each {_alternatives(names)}."
        made = {"schema": {"type": "string", "description": text}, "x-line": {"anyOf": shapes}}
    elif not media.endswith(("json", "urlencoded")):
        made = {"schema": {"type": "string"}}
    if told:
        made["examples"] = told
    return made


def _alternatives(names: list[str]) -> str:
    *others, last = (f"`{name}`" for name in names)
    return f"{', '.join(others)} or {last}" if others else last


def _told(examples: list[Example], status: int) -> Json:
    return {
        each.title: {
            "summary": each.summary,
            "description": f"`{each.method} {each.path}`",
            "value": each.reply,
        }
        for each in examples
        if each.status == status and each.reply is not None
    }


def _security(operation: Operation) -> list[Json]:
    if operation.wire.basic and operation.scope is None:
        return [{}, {"basic": []}]
    scopes = [] if operation.scope is None else [operation.scope, *operation.also]
    known: list[Json] = [{"oauth2": scopes}, {"token": scopes}]
    if operation.wire.basic:
        known.append({"basic": scopes})
    if operation.own:
        return [*known, {OWN_IDENTITY: []}]
    if operation.scope is None:
        return [{}, *known] if HTTPStatus.UNAUTHORIZED in operation.errors else []
    return known


def _response_name(identity: bool, status: int) -> str:
    known = HTTPStatus(status)
    if identity:
        return "Identity" + IDENTITY_CODES[known].title().replace("_", "")
    return known.phrase.replace(" ", "")


def _refusal(identity: bool, status: int) -> Json:
    """Describe an error of one of the faces."""
    known = HTTPStatus(status)
    if identity:
        problem = {"code": IDENTITY_CODES[known], "message": examples_identity.REFUSALS[status]}
        example: Json = {"statusCode": status, "errors": [problem]}
    else:
        example = {"detail": examples.REFUSALS[status], "error_code": _error_code(status)}
    return {
        "description": (IDENTITY_MEANINGS if identity else MEANINGS)[known],
        "headers": _headers(identity, status),
        "content": {
            JSON: {
                "schema": ref("schemas", "Problems" if identity else "Refusal"),
                "example": example,
            }
        },
    }


def _error_code(status: int) -> str:
    errors = (each for each in BelongError.__subclasses__() if each.status == status)
    return next((each.code for each in errors), CODES.get(HTTPStatus(status), BelongError.code))


def _headers(identity: bool, status: int = HTTPStatus.OK) -> Json:
    """Give the headers of an answer."""
    names = ["X-Request-Id"]
    if identity and status < HTTPStatus.MULTIPLE_CHOICES:
        names.append("X-mp-rate-limit-percentage-used")
    if identity and status == HTTPStatus.TOO_MANY_REQUESTS:
        names.append("X-mp-rate-limit-exceeded")
    if status == HTTPStatus.UNAUTHORIZED:
        names.append("WWW-Authenticate")
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        names.append("Retry-After")
    return {name: ref("headers", name) for name in names}
