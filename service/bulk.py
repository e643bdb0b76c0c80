"""Memberships in bulk: a body of lines, of any length, done while it is read.

Owns in what windows lines are done, and what is told of them. A window is read while the one before
it is done, so memory stays flat; and nothing is answered before the end, unless it was asked for,
so that a client may send everything before it reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from service.admission import admitted_again
from service.bulk_lines import (
    NO_SUCH_GROUP,
    WORDS,
    BulkFailure,
    BulkLine,
    BulkResult,
    Cutter,
    Window,
)
from service.endpoint import ENCODER, IDS_PER_TURN, Resource, Wire, endpoint, require_plain
from service.errors import Forbidden, NotFound, Unauthorized, Unavailable, Unwritable
from service.groups import NotStatic
from service.store_bulk import (
    ADD,
    ADD_RECORDED,
    BEING_ERASED,
    NO_GROUP,
    NO_MEMBER,
    OVER_LIMIT,
    REMOVE,
    Changes,
)
from service.store_group_directory import FOLLOWS, READERS, all_done

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Awaitable,
        Callable,
        Collection,
        Sequence,
    )

    from service.admission import TenantCall
    from service.endpoint import Request

__all__ = ["Bulk", "BulkDone", "BulkFailure", "BulkLine", "BulkQuery", "BulkResult"]

NDJSON = "application/x-ndjson"

WINDOW = 10_000
"""Lines that are done together."""

WINDOW_BYTES = 4 * 1024 * 1024
"""How long they may be together: longer ones are done fewer at a time."""

SCOPE = "members:write"

NAMES = 2_000
"""Custom ids that are looked up together: 3 ms of the event loop."""

TOLD = 1_000
"""Failed lines that the answer names; all are counted."""

LINGER_SECONDS = 1.0
"""After so long without more of the body, what is there is done."""

PATIENCE_SECONDS = 10.0
"""How long a window waits for a store that is gone."""

RETRY_SECONDS = 0.2
TRIES = 5

log = logging.getLogger(__name__)

Asked = TypeVar("Asked")

_CLIENT_GONE = 499
"""What logs say of a request that nobody waits for any more; it is sent to nobody."""

_NOT_KNOWN = "The profile is not known, and the application takes only profiles that are."
_BEING_ERASED = "The profile is being erased: try again."
_UNSTEADY = "The group or the profile is deleted and made again all the time: try again."


class BulkQuery(msgspec.Struct):
    """`results=all`: a line for each line, as soon as it is done, for clients that read meanwhile.

    Without it failed lines alone are told, when everything is done.
    """

    results: Annotated[
        Literal["all"] | UnsetType,
        Meta(description="A line of answer for each line, while the body is read."),
    ] = UNSET


class BulkDone(msgspec.Struct, forbid_unknown_fields=True):
    """The last line of an answer: what became of all. An answer without it is not complete.

    `lines` counts blank ones, too.
    """

    done: bool = True
    lines: int = 0
    added: int = 0
    already_added: int = 0
    removed: int = 0
    not_member: int = 0
    failed: int = 0


class ClientGone(Exception):
    """The client closed the connection: there is nobody left to answer."""


class Bulk(Resource):
    """`applications/{cid}/memberships/bulk/`."""

    @endpoint(
        SCOPE,
        query=BulkQuery,
        reply=BulkDone,
        wire=Wire(
            takes=(NDJSON,),
            reads=BulkLine,
            gives=NDJSON,
            lines=(BulkFailure, BulkResult),
            empty=True,
        ),
    )
    async def on_post(self, call: TenantCall, query: BulkQuery) -> bytes | None:
        """Add and remove many members of many groups.

        The body has a line of JSON for each change and no limit; a line has 65,536 bytes at most.
        It is read to its end, then answered by the lines that failed, the first 1,000 of them, and
        by a last line that counts everything: without that the answer is not complete. With
        `results=all` a line of answer for each line comes while the body is read: the client has
        to read them meanwhile. Changes of one profile in one group are made in the order of their
        lines. A line that does not fit fails alone, and so does one of a dynamic group, whose
        members follow its rule tree. A token that ends meanwhile ends the request.
        Repeating is safe.
        """
        require_plain(call.request)
        work = Work(call, eager=query.results is not UNSET)
        if query.results is not UNSET:
            call.response.stream = _Stream(_streamed(work))
            return None
        failures: list[bytes] = []
        try:
            async with contextlib.aclosing(work.windows()) as windows:
                async for window in windows:
                    failures += window.failures(TOLD - len(failures))
        except _ENDS as error:
            raise type(error)(f"{_sentence(error)} {work.told}") from error
        except ClientGone:
            log.info("bulk of %s: the client went away. %s", call.application.client_id, work.told)
            call.response.status = _CLIENT_GONE
            return b""
        return b"\n".join([*failures, ENCODER.encode(work.done), b""])


async def _streamed(work: Work) -> AsyncGenerator[bytes]:
    """Give a result for each line, and the last line if it comes to that."""
    client_id = work.call.application.client_id
    try:
        async with contextlib.aclosing(work.windows()) as windows:
            async for window in windows:
                for part in window.results():
                    yield part
        yield ENCODER.encode(work.done) + b"\n"
    except _ENDS as error:
        said = "bulk of %s ends without its last line: %s %s"
        log.warning(said, client_id, _sentence(error), work.told)
    except ClientGone:
        log.info("bulk of %s: the client went away. %s", client_id, work.told)


_ENDS = (Unavailable, Unauthorized, Forbidden)
"""What ends a request in the middle: the store is gone, the token is not good any more."""


def _sentence(error: Exception) -> str:
    return f"{str(error).rstrip('.')}."


class _Stream:
    """What Falcon sends part by part, and closes, whatever happens."""

    def __init__(self, parts: AsyncGenerator[bytes]) -> None:
        self._parts = parts

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._parts)

    async def close(self) -> None:
        await self._parts.aclose()


class Work:
    """One request: a task reads lines into a window while the one before it is done."""

    def __init__(self, call: TenantCall, *, eager: bool) -> None:
        """Do what there is as soon as possible, or (not `eager`) much at once."""
        self.call = call
        self.done = BulkDone()
        self._eager = eager
        self._pending = self._current = Window(0)
        self._ended = False
        self._wake = asyncio.Event()
        self._room = asyncio.Event()

    @property
    def told(self) -> str:
        """How far it came."""
        begun = self._current.first + self._current.lines
        return (
            f"Of the {begun:,} lines that were begun the first {self.done.lines:,} are done, and"
            " others may be; repeating is safe."
        )

    async def windows(self) -> AsyncGenerator[Window]:
        """Give the windows, each when it is done.

        :raises ClientGone: the client went away. What is under way is given up, at once where we
            wait for more of the body, else when there is room for more
        :raises Unavailable: the store was gone for too long
        :raises Unauthorized: the token ended meanwhile
        """
        reader = asyncio.create_task(self._read())
        try:
            while True:
                window = await self._next()
                if reader.done():
                    reader.result()
                if not window.lines:
                    return
                self.call = await admitted_again(self.call, SCOPE)
                await self._do(window, reader)
                self._count(window)
                yield window
        finally:
            reader.cancel()
            await asyncio.wait([reader])

    async def _read(self) -> None:
        """Read the body, a window ahead."""
        cutter = Cutter()
        try:
            async for piece in _pieces(self.call.request):
                await self._take(cutter.cut(piece))
            await self._take(cutter.end())
        finally:
            self._ended = True
            self._wake.set()

    async def _take(self, lines: Sequence[bytes | None]) -> None:
        step = min(IDS_PER_TURN, WINDOW)
        for start in range(0, len(lines), step):
            while self._is_full():
                self._room.clear()
                await self._room.wait()
            self._pending.take(lines[start : start + step])
            if self._eager or self._is_full():
                self._wake.set()
            await asyncio.sleep(0)

    def _is_full(self) -> bool:
        return self._pending.lines >= WINDOW or self._pending.size_bytes >= WINDOW_BYTES

    async def _next(self) -> Window:
        """Wait for lines that can be done. None are left where there are none in the window."""
        while not (self._ended or self._is_full() or (self._eager and self._pending.lines)):
            self._wake.clear()
            try:
                async with asyncio.timeout(LINGER_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                if self._pending.lines:
                    break
        window = self._current = self._pending
        self._pending = Window(window.first + window.lines)
        self._room.set()
        return window

    async def _do(self, window: Window, reader: asyncio.Task[None]) -> None:
        """Do a window, unless the client goes away meanwhile."""
        doing = asyncio.create_task(self._execute(window))
        try:
            while not doing.done():
                waiting = {doing} if reader.done() else {doing, reader}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if reader.done():
                    reader.result()
        finally:
            if not doing.done():
                doing.cancel()
                await asyncio.wait([doing])
        doing.result()

    async def _execute(self, window: Window) -> None:
        todo = [place for place in range(len(window.numbers)) if place not in window.refused]
        for _ in range(TRIES):
            if not todo:
                return
            todo = await _Attempt(self.call, window).made(todo)
        for place in todo:
            window.letters[place] = 0
            window.refused[place] = ("unavailable", _UNSTEADY)

    def _count(self, window: Window) -> None:
        done = self.done
        done.lines += window.lines
        counters = self.call.backend.counters
        for letter, word in WORDS.items():
            outcomes = window.letters.count(letter)
            setattr(done, word, getattr(done, word) + outcomes)
            counters.count("belong_bulk_lines_total", word, by=outcomes)
        done.failed += len(window.refused)
        counters.count("belong_bulk_lines_total", "failed", by=len(window.refused))


async def _pieces(request: Request) -> AsyncGenerator[bytes]:
    """Give the body as it comes, in pieces of any length.

    :raises ClientGone: the client closed the connection before the end of the body, which Falcon's
        own stream does not tell from that end.
    """
    event = request.first_event or await request.receive()
    while event["type"] != "http.disconnect":
        if event.get("body"):
            yield event["body"]
        if not event.get("more_body"):
            request.whole = b""
            return
        event = await request.receive()
    request.whole = b""
    raise ClientGone


class _Attempt:
    """One attempt at lines of a window: names are looked up, then the changes are made.

    Behind a name that was looked up a group may be deleted and made again, or a profile be erased
    and made again. Lines that met that are left for the next attempt.
    """

    def __init__(self, call: TenantCall, window: Window) -> None:
        self._call = call
        self._env = call.environment
        self._groups = call.store.groups
        self._creates = call.application.profiles == "open"
        self._window = window
        self._numbers: dict[str, int | None] = {}
        self._profiles: dict[str, bytes | None] = {}

    async def made(self, todo: list[int]) -> list[int]:
        """Do what can be done of some lines; give those that are left, in their order."""
        window = self._window
        gids = dict.fromkeys([window.groups[place] for place in todo])
        numbers = await _patiently(lambda: self._groups.static_numbers_of(self._env, gids))
        self._numbers = {gid: n if isinstance(n, int) else None for gid, n in numbers.items()}
        dynamic = [gid for gid, number in numbers.items() if number is NotStatic.DYNAMIC]
        active = await self._active(dynamic)
        gone = [gid for gid, n in self._numbers.items() if n is None and gid not in active]
        todo = self._without(self._without(todo, gone), active, FOLLOWS)
        todo = await self._resolved(todo)
        if not todo:
            return []
        changes = await self._changes(todo)
        await _patiently(lambda: self._call.store.bulk.change_members(self._env, changes))
        return await self._left(todo, changes.letters)

    async def _active(self, gids: list[str]) -> set[str]:
        """Give those groups that are active; of none of the others anything is told."""
        active: set[str] = set()

        async def look(gid: str) -> None:
            with contextlib.suppress(NotFound):
                await _patiently(lambda: self._groups.get_group(self._env, gid))
                active.add(gid)

        for start in range(0, len(gids), READERS):
            await all_done(*map(look, gids[start : start + READERS]))
        return active

    def _without(
        self, todo: list[int], gone: Collection[str], detail: str = NO_SUCH_GROUP
    ) -> list[int]:
        """Refuse the lines of some groups, of those that are gone, and give the others."""
        if not gone:
            return todo
        window = self._window
        gone = frozenset(gone)
        for place in todo:
            if window.groups[place] in gone:
                window.refused[place] = ("invalid", detail)
        return [place for place in todo if place not in window.refused]

    async def _resolved(self, todo: list[int]) -> list[int]:
        """Look up custom ids. Whoever is added under a new one is made, in an open application.

        Else a line that adds is refused, and one that removes has nothing to do.
        """
        window = self._window
        named = {place: each for place in todo if isinstance(each := window.profiles[place], str)}
        if not named:
            return todo
        adding = [place for place in named if window.adds[place]]
        if self._creates:
            # No profile is made for a group that refuses it.
            closed = await _patiently(lambda: self._closed(adding))
            adding = self._without(adding, closed)
        made = dict.fromkeys([named[place] for place in adding])
        others = dict.fromkeys([each for each in named.values() if each not in made])
        await self._look_up(list(made), create=self._creates)
        await self._look_up(list(others), create=False)
        for place, text in named.items():
            if self._profiles[text] is None and place not in window.refused:
                if window.adds[place]:
                    window.refused[place] = ("invalid", _NOT_KNOWN)
                else:
                    window.letters[place] = NO_MEMBER
        return [place for place in todo if not (place in window.refused or window.letters[place])]

    async def _look_up(self, texts: list[str], *, create: bool) -> None:
        for start in range(0, len(texts), NAMES):
            part = texts[start : start + NAMES]
            found = await _patiently(functools.partial(self._resolve, part, create=create))
            self._profiles.update(zip(part, found, strict=True))

    async def _resolve(self, texts: list[str], *, create: bool) -> list[bytes | None]:
        return await self._call.store.profiles.resolve_identities(
            self._env, "customer_id", texts, create=create
        )

    async def _closed(self, places: list[int]) -> list[str]:
        """Give those groups of some lines that are inactive or gone."""
        gids = dict.fromkeys([self._window.groups[place] for place in places])
        numbers = {gid: number for gid in gids if (number := self._numbers[gid]) is not None}
        known = await self._groups.read_groups(self._env, list(numbers.values()))
        closed = []
        for gid, number in numbers.items():
            group = known.get(number)
            if group is None or not group.is_active:
                # It may be behind: what is refused is read as it is.
                try:
                    await self._groups.get_group(self._env, gid)
                except NotFound:
                    closed.append(gid)
        return closed

    async def _changes(self, todo: list[int]) -> Changes:
        window = self._window
        kinds: list[bytes] = []
        numbers: list[int] = []
        packed = bytearray()
        for start in range(0, len(todo), IDS_PER_TURN):
            for place in todo[start : start + IDS_PER_TURN]:
                profile = window.profiles[place]
                if isinstance(profile, str):
                    kinds.append(ADD_RECORDED if window.adds[place] else REMOVE)
                    packed += self._profiles[profile] or b""
                else:
                    kinds.append(ADD if window.adds[place] else REMOVE)
                    packed += profile
                numbers.append(self._numbers[window.groups[place]] or 0)
            await asyncio.sleep(0)
        return Changes.of(kinds, numbers, bytes(packed))

    async def _left(self, todo: list[int], letters: bytearray) -> list[int]:
        """Take what became of the lines, and give those whose names have to be looked up again."""
        window = self._window
        gone: dict[str, None] = {}
        erased: dict[str, None] = {}
        left: list[int] = []
        for start in range(0, len(todo), IDS_PER_TURN):
            part = todo[start : start + IDS_PER_TURN]
            for place, letter in zip(part, letters[start : start + IDS_PER_TURN], strict=True):
                profile = window.profiles[place]
                if letter == NO_GROUP:
                    gone[window.groups[place]] = None
                    left.append(place)
                elif profile in erased:
                    # What follows in the order of lines has to be made again after them.
                    left.append(place)
                elif letter in WORDS:
                    window.letters[place] = letter
                elif letter == OVER_LIMIT:
                    window.refused[place] = ("invalid", self._over_limit)
                elif letter == BEING_ERASED:
                    window.refused[place] = ("unavailable", _BEING_ERASED)
                elif isinstance(profile, str) and self._creates:
                    erased[profile] = None
                    left.append(place)
                else:
                    window.refused[place] = ("invalid", _NOT_KNOWN)
            await asyncio.sleep(0)
        if gone:
            moved = await _patiently(
                lambda: self._groups.renumbered(self._env, self._numbers, gone)
            )
            left = self._without(left, gone.keys() - moved)
        return left

    @property
    def _over_limit(self) -> str:
        most = self._call.application.groups_per_profile
        return f"The profile is in {most} groups, as many as it may."


async def _patiently(ask: Callable[[], Awaitable[Asked]]) -> Asked:
    """Ask the store, again and again while it is gone. What is asked can be repeated.

    :raises Unavailable: it was gone for PATIENCE_SECONDS, or takes no writes
    """
    loop = asyncio.get_running_loop()
    deadline = None
    while True:
        try:
            return await ask()
        except Unwritable:
            raise
        except Unavailable as error:
            if deadline is None:
                deadline = loop.time() + PATIENCE_SECONDS
                log.warning("a bulk request waits for the store: %s", error)
            if loop.time() >= deadline:
                raise
        await asyncio.sleep(RETRY_SECONDS)
