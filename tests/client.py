"""What HTTP tests speak through: an application object over a real Valkey, and strict decoding.

Every reply of a known operation is decoded with the struct that the operation says, which forbids
unknown fields; every error with the shape of its face. So no test can forget to look.
"""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import falcon.testing
import msgspec
import pytest

from service import auth
from service.app import addresses, create_app, operations
from service.config import Config
from service.faces import is_identity
from service.store import Store
from service.verify import verify
from tests import backings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HOST = "http://belong.test:8000"
DEMO = "/api/v1/applications/demo"
GROUPS = f"{DEMO}/profile-groups"
P1 = "174cc6dd-c1da-42d2-886e-c48b2bf803a8"
P2 = "d4b24ed2-f242-4a5a-9ae1-d9b7834f5a98"


class ErrorBody(msgspec.Struct, forbid_unknown_fields=True):
    """An error that is not about one field."""

    detail: str
    error_code: str


class Problem(msgspec.Struct, forbid_unknown_fields=True):
    """What was wrong, on the Group Identity face."""

    code: str
    message: str


class ProblemsBody(msgspec.Struct, forbid_unknown_fields=True, rename={"status": "statusCode"}):
    """An error of the Group Identity face: there is always one problem."""

    status: int
    errors: Annotated[list[Problem], msgspec.Meta(min_length=1, max_length=1)]

    @property
    def detail(self) -> str:
        """The sentence, under the name that it has on the other face."""
        return self.errors[0].message

    @property
    def error_code(self) -> str:
        """The word for it."""
        return self.errors[0].code


class Answer(msgspec.Struct):
    """A reply: `body` is the operation's struct, or the plain JSON of an error."""

    status: int
    headers: dict[str, str]
    content: bytes
    body: Any

    @property
    def plain(self) -> Any:
        """The JSON as dicts and lists."""
        return msgspec.json.decode(self.content)


_PATTERNS = [
    (method, re.compile(re.sub(r"{\w+}", "[^/?]+", address) + r"/?(\?.*)?"), operation)
    for method, path, operation in operations()
    for address in addresses(path)
]


class Client:
    """Calls one application object, as one credential."""

    def __init__(self, conductor: falcon.testing.ASGIConductor, token: str | None) -> None:
        """Take the open conductor and the token to send."""
        self._conductor = conductor
        self.token = token

    def using(self, token: str | None) -> Client:
        """The same, with another token or none."""
        return Client(self._conductor, token)

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        status: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Make a request; bytes and text go as they are, anything else as JSON.

        `path` may be an absolute URL from an answer. The status is what it must be, if given.
        """
        sent: dict[str, str] = {}
        if self.token is not None:
            sent["Authorization"] = f"Bearer {self.token}"
        if isinstance(body, str):
            body = body.encode()
        elif body is not None and not isinstance(body, bytes):
            body = msgspec.json.encode(body)
        path = path.removeprefix(HOST)
        sent |= headers or {}
        host, _, port = sent.pop("Host", HOST.partition("//")[2]).rpartition(":")
        result = await self._conductor.simulate_request(
            method,
            path,
            body=body,
            headers=sent,
            host=host,
            port=int(port),
            remote_addr="127.0.0.1",
        )
        answer = Answer(result.status_code, dict(result.headers), result.content, None)
        assert status in (None, answer.status), answer
        answer.body = _decoded(method, path, answer)
        return answer

    async def get(self, path: str, status: int = 200, **options: Any) -> Answer:
        """GET, which must succeed unless another status is expected."""
        return await self.call("GET", path, status=status, **options)

    async def post(self, path: str, body: object, status: int = 200, **options: Any) -> Answer:
        """POST."""
        return await self.call("POST", path, body, status=status, **options)

    async def patch(self, path: str, body: object, status: int = 200, **options: Any) -> Answer:
        """PATCH."""
        return await self.call("PATCH", path, body, status=status, **options)

    async def delete(self, path: str, body: object = None, status: int = 204) -> Answer:
        """DELETE, with a body or without."""
        return await self.call("DELETE", path, body, status=status)

    async def group(self, name: str = "Group", **fields: Any) -> str:
        """Create a group, and give its id."""
        created = await self.post(f"{GROUPS}/", {"name": name, **fields}, 201)
        group_id: str = created.body.id
        return group_id

    async def walk(self, path: str, link: str = "next") -> list[Any]:
        """Follow a list to its end, and give the body of every page."""
        pages = [(await self.get(path)).body]
        while getattr(pages[-1], link) is not None:
            pages.append((await self.get(getattr(pages[-1], link))).body)
        return pages


class Api(msgspec.Struct):
    """An application object with the store behind it, and an admin client of `demo`."""

    store: Store
    conductor: falcon.testing.ASGIConductor
    admin: Client

    async def client(self, *scopes: str, applications: tuple[str, ...] = ("demo",)) -> Client:
        """A client with a token of its own."""
        token = await auth.mint(
            self.store.registry, applications=applications, scopes=scopes, subject="test"
        )
        return Client(self.conductor, token)


def filled(template: str, **named: str) -> str:
    """Give a path of the route table with something in each of its places."""
    known = {"cid": "demo", "pid": P1, "gid": P2, "file": "index.css"} | named
    return re.sub(r"{(\w+)}", lambda place: known.get(place[1], "1"), template)


def _decoded(method: str, path: str, answer: Answer) -> Any:
    if answer.status == 204:
        assert "content-type" not in answer.headers
    if answer.status == 204 or (answer.status == 202 and not answer.content):
        assert not answer.content
        return None
    if answer.headers["content-type"] == "application/x-ndjson":
        return [msgspec.json.decode(line) for line in answer.content.splitlines()]
    assert answer.headers["content-type"] == "application/json"
    operation = next(
        (each for of, pattern, each in _PATTERNS if of == method and pattern.fullmatch(path)), None
    )
    if answer.status < 400 and operation is not None:
        accepted = operation.wire.accepted if answer.status == 202 else None
        assert answer.status in (200, operation.status) or accepted is not None
        kind: Any = accepted or operation.reply
        kind = msgspec.json.decode(answer.content) if "fields=" in path else kind
        return kind if "fields=" in path else msgspec.json.decode(answer.content, type=kind)
    return _problem(path, answer) if answer.status >= 400 else msgspec.json.decode(answer.content)


def _problem(path: str, answer: Answer) -> Any:
    """Decode an error in the shape of the path's face."""
    if is_identity(path.partition("?")[0]):
        problems = msgspec.json.decode(answer.content, type=ProblemsBody)
        assert problems.status == answer.status
        return problems
    if not path.startswith("/api/"):
        return msgspec.json.decode(answer.content)
    try:
        return msgspec.json.decode(answer.content, type=ErrorBody)
    except msgspec.ValidationError:
        return msgspec.json.decode(answer.content, type=dict[str, list[str]])


@asynccontextmanager
async def opened(url: str, config: Config | None = None) -> AsyncIterator[Api]:
    """Open a store and an application object over it; `demo` is created if it is missing."""
    store = await Store.open(url)
    try:
        if await store.registry.application("demo") is None:
            await store.registry.create_application("demo")
        token = await auth.mint(
            store.registry, applications=["demo"], scopes=["admin"], subject="admin"
        )
        app = create_app(config or Config(), store)
        async with falcon.testing.ASGIConductor(app) as conductor:
            yield Api(store, conductor, Client(conductor, token))
    finally:
        await store.close()


@pytest.fixture
def valkey(servers: dict[str, Any]) -> backings.Server:
    """An embedded server, empty."""
    if "embedded" not in servers:
        servers["embedded"] = backings.embedded()
    server: backings.Server = servers["embedded"]
    server.flush()
    return server


@pytest.fixture
async def api(valkey: backings.Server) -> AsyncIterator[Api]:
    """An application object over an empty store with the application `demo`.

    When the test ends, the store's data has to be right.
    """
    async with opened(valkey.url) as made:
        yield made
        assert (await verify(made.store)).problems == []


@pytest.fixture
def admin(api: Api) -> Client:
    """A client that may do everything in `demo`."""
    return api.admin
