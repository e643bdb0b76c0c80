"""What every operation of the HTTP API shares: from bytes to a struct, and from a struct to bytes.

`endpoint` wraps a responder of a resource: it admits the caller, has path, query and body decoded
in one step each, and encodes the reply. What it was told (scope, structs, status) is kept, so that
the table scope x route, the tests and the OpenAPI document have one source. Errors are answered
here, too, in the shape of the path's face (`faces`). It knows nothing of groups, members or keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import date, timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import quote_from_bytes, unquote_to_bytes

import falcon
import falcon.asgi
import msgspec

from service.admission import (
    Call,
    TenantCall,
    admitted,
    admitted_by_credential,
    admitted_to_workspace,
)
from service.auth import Access
from service.cors import share
from service.counters import Counters
from service.decoding import decoded, query_of, refuse
from service.errors import (
    BelongError,
    Invalid,
    NotFound,
    TooLarge,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from service.faces import error_body, is_identity
from service.signing import Seal

if TYPE_CHECKING:
    from service.config import Config
    from service.counters import Snapshot
    from service.store import Store

API = "/api/v1"
"""What the paths of the Profile Groups face begin with."""

BODY_LIMIT_BYTES = 8 * 1024 * 1024
"""Design 3.1: a longer body is 413, whether it is announced or comes in chunks."""

DISCARD_LIMIT_BYTES = 32 * 1024 * 1024
DISCARD_SECONDS = 5.0
"""What is read, and for how long, of a body that is refused."""

IDS_PER_TURN = 500
"""The event loop prepares no more ids than these between two awaits (design 5.4)."""

ENCODER = msgspec.json.Encoder()

_SLASH = "\udc2f"
"""Stands for a `/` that came as `%2F`. No decoding gives it: surrogateescape starts at U+DC80."""

_PIECE_BYTES = 65_536

Row = TypeVar("Row")
Made = TypeVar("Made")
Responder = Callable[..., Awaitable[object]]


class Request(falcon.asgi.Request):
    """A request routed by the path as the client wrote it.

    ASGI's `path` is percent-decoded, so that a custom id `a/b`, sent as `a%2Fb`, would be two
    segments in it. Here such a slash stays inside its segment.
    """

    escaped: bool
    """Whether the path needs `unescaped`: it held a percent sign or a byte beyond ASCII."""

    whole: bytes | None
    """The body, where it came with the request in one piece and need not be waited for."""

    is_head = False
    """Whether it asks for the head of an answer to GET alone: it is routed as that."""

    admitted: tuple[str, str] | None = None
    """The application that it was admitted to, and the caller."""

    used_percent: int | None = None
    """How much of its caller's allowance is used now, where the application limits requests."""

    def __init__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[Any]],
        first_event: Any = None,
        options: Any = None,
    ) -> None:
        """Take what Falcon's own class takes."""
        query = scope["query_string"]
        if query and not query.isascii():
            # NOTE: Falcon decodes the query string before any error handler is in place.
            scope = {**scope, "query_string": quote_from_bytes(query, _PRINTABLE).encode()}
        super().__init__(scope, receive, first_event=first_event, options=options)
        note = scope.get("belong.note")
        if note is not None:
            note.req = self
            given = self._asgi_headers.get(b"x-request-id")
            if given is not None and REQUEST_ID.fullmatch(given) is not None:
                note.request_id = given
        if self.method == "HEAD":
            self.method = "GET"
            self.is_head = True
        self.receive, self.first_event = receive, first_event
        self.whole = None
        if first_event is not None and not first_event.get("more_body", False):
            self.whole = first_event.get("body", b"")
        raw = scope.get("raw_path") or b""
        self.escaped = b"%" in raw or not raw.isascii()
        if self.escaped:
            self.path = "/".join(
                unquote_to_bytes(segment).decode("utf-8", "surrogateescape").replace("/", _SLASH)
                for segment in raw.removesuffix(b"/").split(b"/")
            )
        if "//" in self.path:
            # mParticle's SDKs append to what they are given as a host: it may end in a slash.
            self.path = _DOUBLED.sub(r"/\1", self.path, 1)

    @property
    def request_id(self) -> str:
        """What its answer and the log call it; the one that it came with, if that is a fit one."""
        note = self.scope.get("belong.note")
        return "" if note is None else note.request_id.decode()

    @property
    def is_identity(self) -> bool:
        """Whether it belongs to the Group Identity face."""
        return is_identity(self.path)

    def routed(self) -> None:
        """Become what it is again: Falcon sends no body where the method is HEAD."""
        if self.is_head:
            self.method = "HEAD"

    @property
    def is_coded(self) -> bool:
        """Whether the body is compressed, or otherwise not what it stands for."""
        coding = self._asgi_headers.get(b"content-encoding")
        return coding is not None and coding.strip().lower() not in (b"", b"identity")


REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
"""What a client may call its request."""
_DOUBLED = re.compile(r"\A/+(v2/)?/*(?=(?:bulk)?events(?:/|\Z))")
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


def unescaped(params: Mapping[str, str]) -> dict[str, str]:
    """Give the path parameters their slashes back.

    :raises Invalid: one is not valid UTF-8.
    """
    values = {name: value.replace(_SLASH, "/") for name, value in params.items()}
    try:
        "".join(values.values()).encode()
    except UnicodeEncodeError as error:
        raise Invalid("The path is not valid UTF-8.") from error
    return values


class Backend:
    """What all resources of one application object share: settings, the store, who may call."""

    def __init__(
        self, config: Config, store: Store | None = None, counters: Counters | None = None
    ) -> None:
        """Take the settings, the store if it is open already, and where to count."""
        self.config = config
        self.counters = counters or Counters("alone")
        self.access = Access(Seal(config.secret_key))
        self.closed_because = "The store has not answered yet."
        self.operations: tuple[tuple[str, str, Operation], ...] = ()
        self._store = store

    @property
    def store(self) -> Store:
        """The open store.

        :raises Unavailable: it could not be opened yet.
        """
        if self._store is None:
            raise Unavailable(self.closed_because)
        return self._store

    def tell(self, to: Snapshot) -> None:
        """Write what was counted of the store into a snapshot, if it is open."""
        if self._store is not None:
            self._store.tell(to)

    @property
    def is_open(self) -> bool:
        """Whether there is a store to ask."""
        return self._store is not None

    def opened(self, store: Store | None) -> None:
        """Take the store that was opened, or None when it was closed."""
        self._store = store


class Resource:
    """A resource of the API: its responders are wrapped by `endpoint`."""

    def __init__(self, backend: Backend) -> None:
        """Take what all resources share."""
        self.backend = backend


JSON = "application/json"


class Wire(msgspec.Struct, frozen=True, kw_only=True):
    """What an operation speaks, where that is not JSON in, JSON out, and the face's errors."""

    takes: tuple[str, ...] = (JSON,)
    """Media types of the body."""
    reads: Any = None
    """What the responder decodes by itself: the struct of the body, or of each line of it."""
    gives: str = JSON
    """Media type of the reply; where it is lines, `reply` is what stands on the last one."""
    lines: tuple[Any, ...] = ()
    """The structs of the other lines."""
    accepted: Any = None
    """The struct that is answered with 202, where that is not the reply."""
    problems: Mapping[int, Any] = {}
    """Status -> struct of an error that has not the face's shape."""
    empty: bool = False
    """Whether the body may be left out."""
    headers: tuple[str, ...] = ()
    """Headers that the responder sets, beside those that every answer has."""
    basic: bool = False
    """The caller may name itself by HTTP Basic. With a scope, that or a token admits it to the one
    application that its credential is for."""


class Operation(msgspec.Struct, frozen=True):
    """What `endpoint` was told about one operation: the source of the tables and of OpenAPI."""

    scope: str | None
    body: type[msgspec.Struct] | None
    query: type[msgspec.Struct] | None
    reply: Any
    status: int
    summary: str
    own: bool
    """A profile token may call it for its own profile, without any scope."""
    errors: tuple[int, ...]
    """Statuses beyond those that follow from the rest: 400, 401, 403, 404, 413, 415, 429, 503."""
    description: str = ""
    """What the docstring of the responder says after its first line."""
    wire: Wire = Wire()
    noun: str = ""
    """The module of the responder."""
    also: tuple[str, ...] = ()
    """Scopes that are needed beside `scope`."""


_OPERATIONS: dict[Responder, Operation] = {}
_PLAIN = Wire()


def operation_of(responder: Any) -> Operation | None:
    """Give what `endpoint` was told about a responder; None if it is not one."""
    return _OPERATIONS.get(getattr(responder, "__func__", responder))


def endpoint(
    scope: str | None,
    *,
    body: type[msgspec.Struct] | None = None,
    query: type[msgspec.Struct] | None = None,
    reply: Any = None,
    status: HTTPStatus = HTTPStatus.OK,
    own: bool = False,
    errors: tuple[HTTPStatus, ...] = (),
    wire: Wire = _PLAIN,
    also: tuple[str, ...] = (),
) -> Callable[[Responder], Responder]:
    """Make a Falcon responder of `async def on_x(self, call[, body][, query], *, <path>)`.

    Without a `scope` anybody may call it and it gets a `Call`; with one it gets a `TenantCall` of
    the application that `{cid}` or `{ws}` of the path, `?client_id=` or the token names; with
    `basic`, of the one that the credential is for. The scopes `also` are needed beside `scope`.
    With `own` a profile token may call it, too: the responder sees to it that it is for
    `principal.profile` alone. It answers a struct, finished JSON as bytes, or None for an answer
    without a body (204, unless `status` says 202), or where it gave the response a stream.
    """
    decoder = None if body is None else msgspec.json.Decoder(body)
    default_query = None if query is None else msgspec.convert({}, query, strict=False)
    code = int(status)

    def decorate(responder: Responder) -> Responder:
        @functools.wraps(responder)
        async def respond(
            resource: Resource, req: Request, resp: falcon.asgi.Response, **params: str
        ) -> None:
            req.routed()
            share(req, resp)
            backend = resource.backend
            if req.escaped:
                params = unescaped(params)
            if not all(params.values()):
                raise NotFound
            call = Call(req, resp, backend)
            in_path = "cid" in params
            if scope is not None:
                call = await _admission(call, params, scope, own=own, basic=wire.basic)
                for each in also:
                    call.require(each)
            arguments: list[object] = [call]
            if decoder is not None:
                arguments.append(decoded(decoder, body, await read_body(req)))
            if query is not None:
                arguments.append(
                    query_of(req.query_string, query, lenient=req.is_identity)
                    if req.query_string
                    else default_query
                )
            elif req.query_string and scope is not None and not req.is_identity:
                refuse(req.query_string, () if in_path else ("client_id",))
            answer = await responder(resource, *arguments, **params)
            _complete(resp, answer, code, wire.gives)
            _tell_allowance(req, resp)

        summary, _, description = inspect.cleandoc(responder.__doc__ or "").partition("\n")
        _OPERATIONS[respond] = Operation(
            scope,
            body,
            query,
            reply,
            code,
            summary.rstrip("."),
            own,
            tuple(map(int, errors)),
            description.strip(),
            wire,
            responder.__module__.rpartition(".")[2],
            also,
        )
        return respond

    return decorate


def _admission(
    call: Call, params: dict[str, str], scope: str, *, own: bool, basic: bool
) -> Awaitable[TenantCall]:
    """Begin to admit a call to the application that its path, query or credential names."""
    if basic:
        return admitted_by_credential(call, scope)
    if "ws" in params:
        return admitted_to_workspace(call, params.pop("ws"), scope)
    return admitted(call, params.pop("cid", None), scope, own=own)


def _tell_allowance(req: Request, resp: falcon.asgi.Response) -> None:
    """Say how much of its allowance a caller of the Group Identity face has used."""
    if req.used_percent is not None and req.is_identity:
        resp.set_header("X-mp-rate-limit-percentage-used", str(req.used_percent))


def _complete(resp: falcon.asgi.Response, answer: object, code: int, gives: str) -> None:
    """Put what a responder answered into the response."""
    if answer is None:
        if resp.stream is None:
            resp.status = code if code == HTTPStatus.ACCEPTED else HTTPStatus.NO_CONTENT
        else:
            resp.content_type = gives
        return
    resp.data = answer if type(answer) is bytes else ENCODER.encode(answer)
    if gives != JSON:
        resp.content_type = resp.content_type or gives
    if code != HTTPStatus.OK:
        resp.status = code


async def stepwise(make: Callable[[Sequence[Row]], list[Made]], rows: Sequence[Row]) -> list[Made]:
    """Apply `make` to slices of `IDS_PER_TURN` rows, and let others run in between."""
    if len(rows) <= IDS_PER_TURN:
        return make(rows)
    made: list[Made] = []
    for first in range(0, len(rows), IDS_PER_TURN):
        made += make(rows[first : first + IDS_PER_TURN])
        await asyncio.sleep(0)
    return made


Timestamp = Annotated[
    str,
    msgspec.Meta(
        extra_json_schema={"format": "date-time", "examples": ["2025-04-28T12:16:49.670053Z"]}
    ),
]
"""What `timestamp` writes."""

NO_NUL = {"pattern": "^[^\\u0000]*$"}
"""For the document alone: the sentence that refuses a NUL says more than a pattern that failed."""

UuidText = Annotated[str, msgspec.Meta(extra_json_schema={"format": "uuid"})]
"""A UUID. That it is one is looked at by `ids`, for many at once."""


def timestamp(at_us: int) -> str:
    """Write microseconds since 1970 as ISO 8601 in UTC: `2025-04-28T12:16:49.670053Z`."""
    seconds, microseconds = divmod(at_us, 1_000_000)
    return f"{_second(seconds)}.{microseconds:06d}Z"


def moment(at_us: int) -> str:
    """Write the same as the Group Identity face does, to the millisecond: `…:49.670Z`."""
    return f"{timestamp(at_us)[:-4]}Z"


@functools.lru_cache(maxsize=4096)
def _second(seconds: int) -> str:
    days, second = divmod(seconds, 86_400)
    return f"{_day(days)}T{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}"


@functools.lru_cache(maxsize=4096)
def _day(days: int) -> str:
    return (date(1970, 1, 1) + timedelta(days)).isoformat()


def require_plain(req: Request) -> None:
    """Refuse a body that is compressed: 415."""
    if req.is_coded:
        description = "Bodies are taken as they are: send them without Content-Encoding."
        raise falcon.HTTPUnsupportedMediaType(description=description)


async def read_body(req: Request, limit_bytes: int = BODY_LIMIT_BYTES) -> bytes:
    """Read the whole body.

    :raises TooLarge: it is, or says it is, longer than the limit.
    """
    require_plain(req)
    whole = req.whole
    if whole is not None and len(whole) <= limit_bytes:
        return whole
    too_large = f"The body may have {limit_bytes} bytes ({_spoken(limit_bytes)}) at most."
    declared = req.content_length
    if declared is not None and declared > limit_bytes:
        raise TooLarge(too_large)
    parts: list[bytes] = []
    size = 0
    while part := await req.stream.read(_PIECE_BYTES):
        size += len(part)
        if size > limit_bytes:
            raise TooLarge(too_large)
        parts.append(part)
    return b"".join(parts)


def _spoken(size_bytes: int) -> str:
    kib = size_bytes // 1024
    return f"{kib} KiB" if kib < 1024 else f"{kib // 1024} MiB"


async def discard_body(req: Request) -> None:
    """Read what is left of a body that nobody wants, within bounds.

    Else a client that is still sending has its connection reset before it reads the answer (seen
    with urllib, 9 MiB, and uvicorn).
    """
    if req.whole is not None or req.expect is not None:
        return
    left = DISCARD_LIMIT_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while left > 0 and (part := await req.stream.read(_PIECE_BYTES)):
                left -= len(part)


async def answer_error(
    req: Request,
    resp: falcon.asgi.Response | None,
    error: BelongError,
    _params: dict[str, Any],
) -> None:
    """Answer a domain error, with the headers that its status asks for."""
    if resp is None:
        raise error
    await discard_body(req)
    resp.status = error.status
    field = getattr(error, "field", None)
    resp.data = error_body(req.path, error.status, str(error), error.code, field)
    if isinstance(error, Unavailable | TooManyRequests):
        resp.set_header("Retry-After", str(error.retry_after_seconds))
        if isinstance(error, TooManyRequests) and is_identity(req.path):
            resp.set_header("X-mp-rate-limit-exceeded", "workspace")
    elif isinstance(error, Unauthorized):
        challenge = f'{error.scheme} realm="belong"'
        if error.code != Unauthorized.code:
            challenge += f', error="invalid_token", error_description="{error}"'
        resp.set_header("WWW-Authenticate", challenge)


async def answer_http_error(
    req: Request,
    resp: falcon.asgi.Response | None,
    error: falcon.HTTPError,
    _params: dict[str, Any],
) -> None:
    """Answer what Falcon refuses (404, 405, 415 …) in the face's shape."""
    if resp is None:
        raise error
    req.routed()
    share(req, resp)
    await discard_body(req)
    status = error.status_code
    if status == HTTPStatus.NOT_FOUND:
        detail = str(NotFound())
    elif status == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f'Method "{req.method}" not allowed.'
    else:
        detail = error.description or f"{HTTPStatus(status).phrase}."
    resp.status = status
    resp.data = error_body(req.path, status, detail)
    for name, value in dict(error.headers or {}).items():
        head = ", HEAD" if name == "Allow" and "GET" in value else ""
        resp.set_header(name, value + head)
