"""Pages: signed cursors, absolute links, and the envelope of a list.

A cursor is a position between two rows (`Cut`), signed with a key of the application and bound to
the list that it was given for: environment, kind of list, whose list, and the query. What a cut
means is the store's business.
"""

from __future__ import annotations

import functools
import hmac
import ipaddress
import re
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

import msgspec

from service import ids
from service.cuts import Cut, Page
from service.decoding import plain
from service.endpoint import ENCODER
from service.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    import falcon.asgi

    from service.admission import Call, TenantCall
    from service.config import Config
    from service.environment import Environment

PAGE_SIZE = 20
PAGE_SIZE_LIMIT = 1000

_MAC_BYTES = 16
_HEAD = struct.Struct(">Bq")
_HOST = re.compile(r"[A-Za-z0-9._~:\[\]-]{1,255}")
_ADDRESS = re.compile(
    r"\[([0-9A-Fa-f:.]{2,45})\](?::\d{1,5})?|([0-9.]{7,15})(?::\d{1,5})?|([0-9A-Fa-f:.]{2,45})"
)

Row = TypeVar("Row")


class Paging(msgspec.Struct):
    """Query parameters of every list."""

    page_size: Annotated[
        int, msgspec.Meta(ge=1, le=PAGE_SIZE_LIMIT, description="Rows of a page.")
    ] = PAGE_SIZE
    cursor: Annotated[
        str | None, msgspec.Meta(description="Position, from `next` or `previous` of a page.")
    ] = None
    fields: Annotated[
        str | None, msgspec.Meta(description="Names of fields, with commas: only these are given.")
    ] = None


class PageBody(msgspec.Struct, Generic[Row], forbid_unknown_fields=True):
    """A page: `count` is of all pages, `next` and `previous` are absolute URLs or null."""

    count: int
    next: str | None
    previous: str | None
    results: list[Row]


class Walk:
    """One list that is being paged: it reads cursors, and writes the ones of the answer."""

    def __init__(
        self,
        environment: Environment,
        link_with: Callable[[str], str],
        kind: str,
        target: bytes = b"",
        query: str = "",
    ) -> None:
        """Name the list; see `walk_of`.

        :param link_with: gives the URL of the request with another position
        """
        self._secret = environment.secret
        self._link_with = link_with
        self._list = (str(environment.number).encode(), kind.encode(), target, query.encode())

    def cut(self, cursor: str | None) -> Cut | None:
        """Give the position of a cursor; None is the beginning.

        :raises Invalid: it was not given out by us, or for another list.
        """
        if cursor is None:
            return None
        try:
            signed = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        except (NotBase64, ValueError):
            signed = b""
        mac, position = signed[:_MAC_BYTES], signed[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(position)) or len(position) < _HEAD.size:
            message = "The cursor is not one of this list: follow `next` and `previous` as given."
            raise Invalid(message, "cursor")
        flags, partition = _HEAD.unpack_from(position)
        return Cut(
            backward=bool(flags & 1),
            after=bool(flags & 2),
            partition=partition,
            key=position[_HEAD.size :],
        )

    def cursor(self, cut: Cut) -> str:
        """Write a position as a cursor."""
        position = _HEAD.pack(cut.backward | cut.after << 1, cut.partition) + cut.key
        return urlsafe_b64encode(self._mac(position) + position).rstrip(b"=").decode()

    def body(self, page: Page[Any], results: Sequence[object]) -> bytes:
        """Encode a page of these results, with links to its neighbours."""
        return ENCODER.encode(
            PageBody(
                count=page.count,
                next=self._link(page.last),
                previous=self._link(page.first),
                results=list(results),
            )
        )

    def spliced(self, page: Page[Any], results: Sequence[bytes]) -> bytes:
        """Put together a page of results that are JSON already, each behind a comma.

        A result may come in several parts.
        """
        return b'{"count":%d,"next":%b,"previous":%b,"results":[%b]}' % (
            page.count,
            ENCODER.encode(self._link(page.last)),
            ENCODER.encode(self._link(page.first)),
            b"".join(results)[1:],
        )

    def _mac(self, position: bytes) -> bytes:
        key = _signing_key(self._secret)
        bound = b"".join(len(part).to_bytes(4, "big") + part for part in self._list)
        return hmac.digest(key, bound + position, "sha256")[:_MAC_BYTES]

    def _link(self, cut: Cut | None) -> str | None:
        if cut is None:
            return None
        return self._link_with(f"cursor={self.cursor(cut)}")


def walk_of(call: TenantCall, kind: str, target: bytes = b"", query: str = "") -> Walk:
    """Name the list that a request asks for.

    :param kind: which list, e.g. `members`
    :param target: whose list: packed profile id or number of the group
    :param query: what filters and orders it, in one canonical text
    """
    link_with = functools.partial(link, call, ("cursor", "page"))
    return Walk(call.environment, link_with, kind, target, query)


@functools.lru_cache(maxsize=4096)
def _signing_key(secret: bytes) -> bytes:
    return ids.derive(secret, b"cursor", 32)


def link(call: Call, without: Collection[str], parameter: str) -> str:
    """Give the URL of this very request without some query parameters, and with another one."""
    request = call.request
    pieces = [
        piece
        for piece in request.query_string.split("&")
        if piece and plain(piece.partition("=")[0]) not in without
    ]
    pieces.append(parameter)
    path = (request.scope.get("raw_path") or request.scope["path"].encode()).decode("latin-1")
    return f"{origin(request, call.backend.config)}{path}?{'&'.join(pieces)}"


def origin(request: falcon.asgi.Request, config: Config) -> str:
    """Give what URLs begin with: scheme and host as the client used them, without a slash.

    The setting `public_url` wins; `X-Forwarded-Proto` and `-Host` count only if the peer is one of
    `trusted_proxies`.

    :raises Invalid: the Host header is no host.
    """
    forwarded = request.get_header("x-forwarded-proto"), request.get_header("x-forwarded-host")
    return origin_of(config, request.remote_addr, request.scheme, request.netloc, *forwarded)


def origin_of(
    config: Config,
    peer: str,
    scheme: str,
    host: str,
    forwarded_scheme: str | None,
    forwarded_host: str | None,
) -> str:
    """Give the same of what a request says."""
    if config.public_url:
        return config.public_url.rstrip("/")
    proxies = config.trusted_proxies
    if proxies and _is_trusted(peer, proxies):
        scheme = _nearest(forwarded_scheme) or scheme
        host = _nearest(forwarded_host) or host
    if not _HOST.fullmatch(host) or scheme not in ("http", "https"):
        message = "The Host header is not a host, or the scheme is neither http nor https."
        raise Invalid(message)
    return f"{scheme}://{host}"


def client_address(request: falcon.asgi.Request, config: Config) -> str:
    """Give the address that a request came from: the peer's, or what trusted proxies say.

    Of `X-Forwarded-For` the last address counts that is not a trusted proxy's itself, or, where
    anybody is trusted (`*`), the last one: what stands before it anybody can write.
    """
    address, proxies = request.remote_addr, config.trusted_proxies
    if proxies and _is_trusted(address, proxies):
        for said in reversed((request.get_header("x-forwarded-for") or "").split(",")):
            match = _ADDRESS.fullmatch(said.strip())
            if match is None:
                break
            address = next(filter(None, match.groups()))
            if "*" in proxies or not _is_trusted(address, proxies):
                break
    return address


def _nearest(header: str | None) -> str | None:
    return header.rpartition(",")[2].strip() if header else None


@functools.lru_cache(maxsize=4096)
def _is_trusted(peer: str, proxies: tuple[str, ...]) -> bool:
    if "*" in proxies:
        return True
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return False
    return any(address in ipaddress.ip_network(proxy) for proxy in proxies)


def chosen(fields: str | None, row: type[msgspec.Struct]) -> tuple[str, ...] | None:
    """Read the parameter `fields`; None is all of them.

    :raises Invalid: a name is none of the row's fields.
    """
    if fields is None:
        return None
    names = tuple(dict.fromkeys(name.strip() for name in fields.split(",")))
    for name in names:
        if name not in row.__struct_fields__:
            known = ", ".join(row.__struct_fields__)
            message = f"{name[:255]!r} is not a field here - at `$.fields`. There are: {known}"
            raise Invalid(message, "fields")
    return names
