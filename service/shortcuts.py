"""Shortcuts: the hot requests, answered on the shortest way that there is.

Three questions are asked on every request of somebody's product: is this profile in this group (as
a check of one pair, or as one membership), which groups is it in, and who is in a group (a first
page of either). Where such a request comes
whole, in the form that all clients use, with a token and an application that are known, it is
answered here, between the bytes of the socket and those of the store: without the HTTP parser, the
framework, a task or a coroutine. **Only what is answered with 200 and nothing special is answered
here**, and, with 404, that a profile is no member. Everything else, be it seen in the request or in
the store's reply, is handed to the ordinary way from its first byte: these requests only read, so
that is safe, and errors have one place. Whatever is answered is the same on both ways, byte for
byte (a test holds them together).

What belongs to the connection is the business of `api_process`, which route says what that of
`lookups` and `members`, and the commands that leave that of `store_shortcuts`.
"""

from __future__ import annotations

import functools
import logging
import re
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import httptools
import msgspec

from service import ids, lookups, members
from service.cors import SHARED
from service.cuts import Around, member_page, number_page
from service.endpoint import API, ENCODER, REQUEST_ID
from service.errors import Invalid, NotFound
from service.faces import error_body
from service.lane import ReplyError
from service.paging import PAGE_SIZE, Walk, origin_of
from service.record import Answered
from service.store_members import member_of
from service.store_shortcuts import ROWS

if TYPE_CHECKING:
    from collections.abc import Callable

    Match = re.Match[bytes]

    from uvicorn.server import ServerState

    from service.endpoint import Backend
    from service.environment import Environment
    from service.nearcache import NearCache
    from service.record import RecordingApp, Route

HEADS = 1024
"""Heads of requests that are remembered with what they say: clients send the same ones again."""
HEAD_BYTES = 2048
"""A longer one is not remembered, and read anew each time."""
SCOPE = "members:read"

LONGEST_LENGTH = 15
"""Digits of a `Content-Length`: Python refuses to read thousands of them, with an exception."""
UNKNOWN = "127.0.0.1"
"""The address of a client that has none, as Falcon gives it."""

_APPLICATION = rb" /api/v1/applications/([A-Za-z0-9_.~-]{1,255})"
_UUID = rb"([0-9a-fA-F-]{36})"
_PAGE_SIZE = rb"(?:\?page_size=([1-9][0-9]{0,2}|1000))?"
_REQUEST = re.compile(
    rb"(?:GET" + _APPLICATION + rb"/profiles/" + _UUID + rb"/profile-groups/?" + _PAGE_SIZE
    + rb"|GET" + _APPLICATION + rb"/profile-groups/" + _UUID + rb"/members/?" + _PAGE_SIZE
    + rb"|GET" + _APPLICATION + rb"/profile-groups/" + _UUID + rb"/members/" + _UUID + rb"/?"
    rb"|POST" + _APPLICATION + rb"/memberships/check/?"
    rb") HTTP/1\.1\r\n"
)  # fmt: skip
_CLIENT_ID = {2: 1, 3: 1, 5: 4, 6: 4, 9: 7, 10: 10}
"""By the last group of the pattern that matched: the one that holds the client id."""
_ANSWER = b"%bcontent-length: %d\r\ncontent-type: application/json\r\nx-request-id: %b\r\n\r\n%b"
_OK, _NOT_FOUND = HTTPStatus.OK, HTTPStatus.NOT_FOUND
_NO_MEMBER = error_body(f"{API}/", NotFound.status, str(NotFound()), NotFound.code, None)
_END = b"\r\n\r\n"
_ONCE = (
    b"authorization",
    b"host",
    b"content-length",
    b"x-request-id",
    b"x-forwarded-proto",
    b"x-forwarded-host",
)
_BEYOND = frozenset((b"transfer-encoding", b"content-encoding", b"expect", b"upgrade"))
_CHECKED = {letter: lookups.ANSWERS[letter[0]] for letter in (b"1", b"0")}

log = logging.getLogger(__name__)


class Connected(Protocol):
    """The connection that a request came on."""

    scheme: Literal["http", "https"] | None
    client: tuple[str, int] | None
    server_state: ServerState

    def answered(self, shortcut: Shortcut, answer: bytes | None) -> None:
        """Send an answer; None: the request of the shortcut goes the ordinary way."""

    def abort(self) -> None:
        """Drop the client."""


class Head(NamedTuple):
    """What the headers of a request say, as far as it matters here."""

    authorization: str
    host: str
    length: int
    """Of the body, in bytes."""
    request_id: bytes | None
    forwarded_scheme: str | None
    forwarded_host: str | None


class Admitted(NamedTuple):
    """What a request is admitted to, and whose requests it is counted with."""

    env: Environment
    caller: str


class _Pair(msgspec.Struct, forbid_unknown_fields=True):
    profile_id: str
    group_id: str


class _Pairs(msgspec.Struct, forbid_unknown_fields=True):
    pairs: tuple[_Pair]


_decode_pairs = msgspec.json.Decoder(_Pairs).decode


class Shortcut:
    """One request on its way: who waits for the store's reply, and what is made of it."""

    __slots__ = (
        "_began",
        "_hot",
        "_request_id",
        "admitted",
        "connected",
        "hits",
        "make",
        "request",
        "route",
    )

    make: Callable[[Any], bytes | None]
    """Makes a body of the store's reply; None where that is not as usual."""
    route: Route

    def __init__(
        self,
        hot: Shortcuts,
        connected: Connected,
        request: bytes,
        request_id: bytes | None,
        admitted: Admitted,
    ) -> None:
        """Begin to answer."""
        self._began = time.perf_counter_ns()
        self._hot = hot
        self._request_id = request_id
        self.admitted = admitted
        self.connected = connected
        self.hits = 0
        """What the near-cache knew of what was asked; counted where that was of use."""
        self.request = request

    def done(self) -> bool:
        """Whether nobody waits any more: never, for it is noted even if the client has left."""
        return False

    def set_result(self, reply: Any, /) -> None:
        """Take the store's reply, and answer."""
        self._end(reply)

    def set_exception(self, error: BaseException, /) -> None:
        """Take that no reply will come: the ordinary way asks again, and says why not."""
        self._end(error)

    def _end(self, reply: Any) -> None:
        hot = self._hot
        hot.app.in_flight -= 1
        try:
            if isinstance(reply, ReplyError) and str(reply).startswith("NOSCRIPT"):
                hot.backend.store.shortcuts.forgotten()
            body = None if isinstance(reply, BaseException) else self._made(reply)
            answer = None if body is None else self._answer(body)
            self.connected.answered(self, answer)
        except Exception:
            # Others wait behind this one for their replies: what is wrong with it is its own.
            log.exception("the shortcut for %r failed", self.request[:200])
            self.connected.abort()
        # It holds this one in turn.
        del self.make

    def _made(self, reply: Any) -> bytes | None:
        try:
            return self.make(reply)
        except Invalid:
            pass  # Who we are for this client cannot be said: the ordinary way tells it.
        except Exception:
            log.exception("no shortcut for %r", self.request[:200])
        return None

    def _answer(self, body: bytes) -> bytes:
        """Note the request, and write the answer."""
        hot = self._hot
        status = _NOT_FOUND if body is _NO_MEMBER else _OK
        request_id = self._request_id or next(hot.app.ids)
        # Noted first: who has the answer may ask at once what was counted.
        elapsed_ns = time.perf_counter_ns() - self._began
        self.route.note(status, elapsed_ns)
        if self.hits and hot.backend.is_open:
            hot.backend.store.cache.hits += self.hits
        if hot.app.logs(status):
            self._log(request_id, status, body, elapsed_ns)
        return hot.answer(status, self.connected.server_state.default_headers, request_id, body)

    def _log(self, request_id: bytes, status: int, body: bytes, elapsed_ns: int) -> None:
        path, _, _ = self.request.split(b" ", 2)[1].partition(b"?")
        route, client = self.route, self.connected.client
        line = {
            "bytes": len(body),
            "remote": UNKNOWN if client is None else client[0],
            "application": self.admitted.env.client_id,
            "caller": self.admitted.caller,
        }
        if status != _OK:
            line["error"] = msgspec.Raw(body)
        answered = Answered(request_id, route.method, route.template, path, status, elapsed_ns)
        self._hot.app.write_line(answered, line)


class Shortcuts:
    """The shortcuts of one API process."""

    def __init__(self, app: RecordingApp, backend: Backend) -> None:
        """Take the application object, which counts, and what its resources share."""
        self.app = app
        self.backend = backend
        self._heads: dict[bytes, Head] = {}
        self._shared: list[tuple[bytes, bytes]] = []
        self._beginnings: dict[int, bytes] = {}
        of = f"{API}/applications/{{cid}}"
        groups = app.route("GET", f"{of}/profiles/{{pid}}/profile-groups"), self._ask_groups
        member = app.route("GET", f"{of}/profile-groups/{{gid}}/members/{{pid}}"), self._ask_member
        check = app.route("POST", f"{of}/memberships/check"), self._ask_check
        page = app.route("GET", f"{of}/profile-groups/{{gid}}/members"), self._ask_members
        self._kinds = {2: groups, 3: groups, 5: page, 6: page, 9: member, 10: check}

    def take(self, connected: Connected, request: bytes) -> Shortcut | None:
        """Ask the store about a request, if there is a shortcut for it.

        `connected` is told the answer later, not before this returns.

        :param request: what one read gave, from a connection on which nothing is under way
        """
        match = _REQUEST.match(request)
        if match is None or not self.backend.is_open:
            return None
        begin = match.end()
        end = request.find(_END, begin - 2) + len(_END)
        headers = request[begin:end]
        head = self._heads.get(headers) or self._head(headers)
        if head is None or head.length != len(request) - end:
            return None
        kind = match.lastindex or 0
        admitted = self._admitted(head, match[_CLIENT_ID[kind]])
        if admitted is None:
            return None
        shortcut = Shortcut(self, connected, request, head.request_id, admitted)
        shortcut.route, ask = self._kinds[kind]
        if not ask(shortcut, admitted.env, match, head):
            return None
        self.app.in_flight += 1
        return shortcut

    def _ask_check(self, shortcut: Shortcut, env: Environment, _match: Match, head: Head) -> bool:
        """Ask whether the profile of the one pair of a check is in its group."""
        try:
            [pair] = _decode_pairs(shortcut.request[-head.length :]).pairs
        except (msgspec.DecodeError, UnicodeDecodeError):
            return False
        shortcut.make = _CHECKED.get
        profile_id = ids.parse(pair.profile_id)
        number = self._number(shortcut, env, pair.group_id)
        if profile_id is None or number is None:
            return False
        return self.backend.store.shortcuts.check_member(env, number, profile_id, shortcut)

    def _ask_member(self, shortcut: Shortcut, env: Environment, match: Match, _head: Head) -> bool:
        """Ask for one membership."""
        profile_id = ids.parse(match[9].decode())
        number = self._number(shortcut, env, match[8].decode())
        if profile_id is None or number is None:
            return False
        shortcut.make = functools.partial(_member_body, profile_id)
        return self.backend.store.shortcuts.get_member(env, number, profile_id, shortcut)

    def _ask_groups(self, shortcut: Shortcut, env: Environment, match: Match, head: Head) -> bool:
        """Ask for the first page of a profile's groups."""
        profile_id, limit = ids.parse(match[2].decode()), int(match[3] or PAGE_SIZE)
        if profile_id is None or len(env.partitions) > 1:
            return False
        store = self.backend.store
        link_with = functools.partial(self._link, shortcut, head)
        walk = Walk(env, link_with, lookups.LIST, profile_id)
        shortcut.make = functools.partial(_groups_body, store.cache, env, walk, limit)
        return store.shortcuts.read_groups_of(env, profile_id, shortcut)

    def _ask_members(self, shortcut: Shortcut, env: Environment, match: Match, head: Head) -> bool:
        """Ask for the first page of a group's members."""
        number = self._number(shortcut, env, match[5].decode())
        limit = int(match[6] or PAGE_SIZE)
        if number is None or limit > ROWS or len(env.partitions) > 1:
            return False
        link_with = functools.partial(self._link, shortcut, head)
        walk = Walk(env, link_with, members.LIST, b"%d" % number)
        shortcut.make = functools.partial(_members_body, env, walk)
        return self.backend.store.shortcuts.read_first_members(env, number, limit, shortcut)

    def answer(
        self, status: int, shared: list[tuple[bytes, bytes]], request_id: bytes, body: bytes
    ) -> bytes:
        """Write an answer as the ordinary way does, with this JSON as its body.

        :param shared: headers of all answers: a list that is never changed, only replaced
        """
        if self._shared is not shared:
            self._shared = shared
            lines = b"".join([b"%b: %b\r\n" % header for header in shared])
            self._beginnings = {
                each: b"HTTP/1.1 %d %b\r\n%b%b" % (each, each.phrase.encode(), lines, SHARED)
                for each in (_OK, _NOT_FOUND)
            }
        return _ANSWER % (self._beginnings[status], len(body), request_id, body)

    def _admitted(self, head: Head, client_id: bytes) -> Admitted | None:
        """Give what a request is admitted to, and whose it is, if that is known and takes nothing.

        As `admission` does it; whom it refuses, or has to ask the store about, is sent there.
        """
        principal = self.backend.access.known(head.authorization)
        if principal is None or principal.profile is not None or SCOPE not in principal.scopes:
            return None
        named = client_id.decode()
        application = self.backend.store.registry.known(named)
        if (
            application is None
            or named not in principal.applications
            or application.requests_per_second is not None
        ):
            return None
        return Admitted(application.production, principal.caller)

    def _number(self, shortcut: Shortcut, env: Environment, gid: str) -> int | None:
        """Give the number of a group by its id, if that is known."""
        parsed = ids.parse(gid)
        if parsed is None:
            return None
        shortcut.hits = 1
        return self.backend.store.cache.directory(env.directory).numbers.get(parsed)

    def _head(self, headers: bytes) -> Head | None:
        """Read headers, and remember what they say."""
        head = read_head(headers)
        if head is not None and len(headers) <= HEAD_BYTES:
            if len(self._heads) >= HEADS:
                del self._heads[next(iter(self._heads))]
            self._heads[headers] = head
        return head

    def _link(self, shortcut: Shortcut, head: Head, parameter: str) -> str:
        """Give the URL of a request with one more query parameter.

        :raises Invalid: the Host header is no host
        """
        connected = shortcut.connected
        origin = origin_of(
            self.backend.config,
            UNKNOWN if connected.client is None else connected.client[0],
            connected.scheme or "http",
            head.host,
            head.forwarded_scheme,
            head.forwarded_host,
        )
        path, _, query = shortcut.request.split(b" ", 2)[1].decode().partition("?")
        return f"{origin}{path}?{query}&{parameter}" if query else f"{origin}{path}?{parameter}"


class _Listener:
    """What `httptools` calls while it reads a head."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.parser = httptools.HttpRequestParser(self)
        self.stays = False
        """Whether the connection is kept, and as what it is. Known when the head is complete."""

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.stays = self.parser.should_keep_alive() and not self.parser.should_upgrade()


def read_head(headers: bytes) -> Head | None:
    """Read the headers of a request, up to the empty line; None where there is more to them.

    They are judged by the parser that the ordinary way uses, so what that refuses is none here.
    """
    listener = _Listener()
    try:
        # As a POST: where a length is given, the parser then waits for the body.
        listener.parser.feed_data(b"POST / HTTP/1.1\r\n" + headers)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    names = [name for name, _ in listener.headers]
    found = dict(listener.headers)
    length = found.get(b"content-length", b"0")
    request_id = found.get(b"x-request-id")
    if (
        not headers.endswith(_END)
        or not listener.stays
        or any(names.count(name) > 1 for name in _ONCE)
        or not _BEYOND.isdisjoint(names)
        or b"authorization" not in found
        or b"host" not in found
        or not length.isdigit()
        or len(length) > LONGEST_LENGTH
        or (request_id is not None and REQUEST_ID.fullmatch(request_id) is None)
    ):
        return None
    return Head(
        found[b"authorization"].decode("latin-1"),
        found[b"host"].decode("latin-1"),
        int(length),
        request_id,
        _text(found.get(b"x-forwarded-proto")),
        _text(found.get(b"x-forwarded-host")),
    )


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


def _member_body(profile_id: bytes, reply: Any) -> bytes | None:
    """Make the answer about one membership of what `get_members.lua` replied."""
    if type(reply) is not list:
        return None
    if reply[0] is None:
        return _NO_MEMBER
    return ENCODER.encode(members.body_of(member_of(profile_id, *reply)))


def _members_body(env: Environment, walk: Walk, reply: Any) -> bytes | None:
    """Make the first page of a group's members of what `read_first_members.lua` replied."""
    if type(reply) is not list:
        return None
    count, more, mixed, joined, names = reply
    times = joined.split()
    places = [(0, mixed[-ids.SIZE :])] if times else []
    around = Around(more=bool(more), other=False, count=int(count))
    rows = members.rows_of(env.mixer.unmix(mixed), times, names)
    return walk.spliced(member_page([], places, around, None), [rows])


def _groups_body(
    cache: NearCache, env: Environment, walk: Walk, limit: int, reply: Any
) -> bytes | None:
    """Make the first page of a profile's groups of what `read_groups_of.lua` replied."""
    if type(reply) is not list:
        return None
    directory = cache.directory(env.directory)
    names, counts = reply
    count_of = dict(zip(map(int, names.split()), counts.split(), strict=True))
    shown = sorted(count_of)[:limit]
    rows = directory.rows
    results: list[bytes] = []
    for number in shown:
        row = rows.get(number)
        if row is None:
            group = directory.groups.get(number)
            if group is None:
                return None
            row = lookups.around_count(directory, group)
        results += row[0], count_of[number], row[1]
    around = Around(more=len(count_of) > limit, other=False, count=len(count_of))
    body = walk.spliced(number_page([], shown, around, None), results)
    cache.hits += len(shown)
    return body
