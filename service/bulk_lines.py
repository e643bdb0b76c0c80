"""The lines of a bulk request: how a body is cut into them, what each must say, what is told of it.

Pure: what is done with them is the business of `bulk`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import msgspec
from msgspec import UNSET, UnsetType

from service import ids
from service.decoding import misfit
from service.endpoint import ENCODER, IDS_PER_TURN, UuidText
from service.errors import NotFound
from service.store_bulk import ADDED, ALREADY, NO_MEMBER, REMOVED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LONGEST_LINE = 65_536
"""Bytes of a line, without what ends it (design 3.1)."""

LONGEST_CUSTOM_ID = 255
"""Of a profile and of a group."""

LONGEST_DETAIL = 300

Status = Literal["added", "already_added", "removed", "not_member", "invalid", "unavailable"]
Trouble = Literal["invalid", "unavailable"]


class BulkLine(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One line: a profile, by id or custom id, is added to a group or removed from it.

    `group_id` is the id or the custom id of the group.
    """

    INSTEAD: ClassVar[dict[str, str]] = {
        "profile_ids": "use `profile_id`, one a line",
        "custom_ids": "use `custom_id`, one a line",
    }

    op: Literal["add", "remove"]
    group_id: str
    profile_id: UuidText | UnsetType = UNSET
    custom_id: str | UnsetType = UNSET


class BulkFailure(msgspec.Struct, forbid_unknown_fields=True):
    """A line that was not done, and why. One that is `unavailable` may be sent again as it is."""

    line: int
    status: Trouble
    detail: str


class BulkResult(msgspec.Struct, forbid_unknown_fields=True):
    """What became of a line, with `results=all`; `detail` where it was not done."""

    line: int
    status: Status
    detail: str | UnsetType = UNSET


class Cutter:
    """Cuts a body into lines. None stands for one that is too long, which is not kept."""

    def __init__(self) -> None:
        """Begin with a line."""
        self._rest = b""
        self._passing = False

    def cut(self, piece: bytes) -> Sequence[bytes | None]:
        """Take a piece of the body, and give the lines that end in it."""
        *cut, rest = (self._rest + piece).split(b"\n")
        lines: list[bytes | None] = [*cut]
        if cut and max(map(len, cut)) > LONGEST_LINE:
            lines = [None if _is_long(line) else line for line in cut]
        if cut and self._passing:
            lines[0] = None
            self._passing = False
        self._passing = self._passing or _is_long(rest)
        self._rest = b"" if self._passing else rest
        return lines

    def end(self) -> Sequence[bytes | None]:
        """Give the last line, where nothing ends it but the end of the body."""
        if self._passing:
            return [None]
        return [self._rest] if self._rest else []


def _is_long(line: bytes) -> bool:
    return len(line) > LONGEST_LINE and len(line.removesuffix(b"\r")) > LONGEST_LINE


_DECODE = msgspec.json.Decoder(BulkLine).decode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_TOO_LONG = f"The line has more than {LONGEST_LINE:,} bytes."
_ONE_NAME = "give either `profile_id` or `custom_id`, not both and not neither"
_NO_CUSTOM_ID = f"`custom_id` must have 1 to {LONGEST_CUSTOM_ID} characters and no NUL"
NO_SUCH_GROUP = str(NotFound())

WORDS: dict[int, Status] = {
    ADDED: "added",
    ALREADY: "already_added",
    REMOVED: "removed",
    NO_MEMBER: "not_member",
}
"""Outcomes of changes that were made, as the answer calls them."""

_RESULTS = {
    letter: b'{"line":%%d,"status":"%b"}\n' % word.encode() for letter, word in WORDS.items()
}


def _objection(line: BulkLine) -> str | None:
    """Say what does not fit in a line that could be decoded."""
    custom_id = line.custom_id
    if (custom_id is UNSET) == (line.profile_id is UNSET):
        return _ONE_NAME
    if custom_id is not UNSET and not (
        0 < len(custom_id) <= LONGEST_CUSTOM_ID and "\0" not in custom_id
    ):
        return _NO_CUSTOM_ID
    if len(line.group_id) > LONGEST_CUSTOM_ID:
        return NO_SUCH_GROUP
    return None


def _reason(error: Exception) -> str:
    """Say what is wrong with a line that cannot be decoded."""
    if isinstance(error, msgspec.ValidationError):
        said = str(misfit(str(error), BulkLine))
        # What is too much stands in the middle: where it was is said at the end.
        return said if len(said) <= LONGEST_DETAIL else f"{said[:200]} … {said[-80:]}"
    if isinstance(error, msgspec.DecodeError):
        return f"The line is not JSON: {str(error).removeprefix('JSON is malformed: ')}."
    if isinstance(error, UnicodeDecodeError):
        return "The line is not valid UTF-8."
    return "The line is nested too deeply."


class Window:
    """Lines that are done together, a column for each thing that is known of them.

    `profiles` has the id of a profile, or its custom id as text; `letters` what became of a line,
    and `refused` why nothing did, by its place in the columns. Blank lines have no place.
    """

    def __init__(self, first: int) -> None:
        """Begin after so many lines."""
        self.first = first
        self.lines = 0
        self.size_bytes = 0
        self.numbers: list[int] = []
        self.adds: list[bool] = []
        self.groups: list[str] = []
        self.profiles: list[bytes | str] = []
        self.letters = bytearray()
        self.refused: dict[int, tuple[Trouble, str]] = {}

    def take(self, lines: Sequence[bytes | None]) -> None:
        """Read more lines: IDS_PER_TURN of them at most, for nobody else runs meanwhile."""
        named: list[str] = []
        places: list[int] = []
        for number, raw in enumerate(lines, self.first + self.lines + 1):
            if raw is None:
                self._refuse(number, _TOO_LONG)
                continue
            try:
                line = _DECODE(raw)
            except _UNREADABLE as error:
                if raw.strip():
                    self._refuse(number, _reason(error))
                continue
            objection = _objection(line)
            if objection is not None:
                self._refuse(number, objection)
                continue
            if line.profile_id is not UNSET:
                named.append(line.profile_id)
                places.append(len(self.numbers))
            self.numbers.append(number)
            self.adds.append(line.op == "add")
            self.groups.append(line.group_id)
            self.profiles.append(line.custom_id or b"")
        self.lines += len(lines)
        self.size_bytes += sum(map(len, filter(None, lines)))
        packed, malformed = ids.pack(named)
        for each in reversed(malformed):
            detail = f"{named[each][:LONGEST_CUSTOM_ID]!r} is not a UUID - at `$.profile_id`"
            self.refused[places.pop(each)] = ("invalid", detail)
        for place, profile_id in zip(places, ids.split(packed), strict=True):
            self.profiles[place] = profile_id
        self.letters += bytes(len(self.numbers) - len(self.letters))

    def _refuse(self, number: int, detail: str) -> None:
        self.refused[len(self.numbers)] = ("invalid", detail)
        self.numbers.append(number)
        self.adds.append(False)
        self.groups.append("")
        self.profiles.append(b"")

    def failures(self, most: int) -> Iterator[bytes]:
        """Give the lines that failed, in their order: the first of them."""
        for place in sorted(self.refused)[:most]:
            yield ENCODER.encode(BulkFailure(self.numbers[place], *self.refused[place]))

    def results(self) -> Iterator[bytes]:
        """Give what became of every line, in their order, in parts."""
        for start in range(0, len(self.numbers), IDS_PER_TURN):
            stop = min(start + IDS_PER_TURN, len(self.numbers))
            yield b"".join(map(self._result, range(start, stop)))

    def _result(self, place: int) -> bytes:
        told = _RESULTS.get(self.letters[place])
        if told is not None:
            return told % self.numbers[place]
        return ENCODER.encode(BulkResult(self.numbers[place], *self.refused[place])) + b"\n"
