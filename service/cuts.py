"""Positions in lists: what a page of an exact walk begins at, and what it ends with.

Pure. A cursor (`paging.py`) is a cut that was signed; the store reads from a cut on.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """A position between two rows of a list, and the direction to read in from there.

    In a list of members the cut lies just after (else just before) the mixed id `key` in
    `partition`; in a list by group number it lies between the number `key` (decimal text) and the
    one above. With `backward` the page is what lies before the cut in the list's order.
    """

    backward: bool
    after: bool = True
    partition: int = 0
    key: bytes


class Page(msgspec.Struct, Generic[T]):
    """Rows of a list in its order, with what lies around them.

    `count` is the exact number of all rows. `first` is the cut just before the first row, None
    exactly when no row lies there at reading time; `last` the one just after the last row. An empty
    page has the cuts of the position that was asked for.
    """

    count: int
    rows: list[T]
    first: Cut | None
    last: Cut | None


class Around(msgspec.Struct, frozen=True):
    """What lies around rows that were read from a cut on.

    More rows beyond the last one; others behind the cut; and how many there are in all.
    """

    more: bool
    other: bool
    count: int


def number_bound(cut: Cut | None, *, up: bool) -> bytes:
    """Give the group number at which a walk from a cut begins, inclusive; empty at the end.

    The very end, in reading direction: where a list begins.
    """
    if cut is None:
        return b""
    return b"%d" % (int(cut.key) + 1 if up else int(cut.key))


def number_page(
    rows: list[T],
    numbers: list[int],
    around: Around,
    cut: Cut | None,
    *,
    descending: bool = False,
) -> Page[T]:
    """Give a page of a list in the order of group numbers.

    `numbers` are the group numbers that were read, in reading order. `rows` are the rows, also in
    reading order; a row may be missing where its group vanished between two reads.
    """
    backward = cut is not None and cut.backward
    if backward:
        rows, numbers = rows[::-1], numbers[::-1]
    before, after = _sides(around, backward=backward)
    if numbers:
        begin, end = numbers[0] - (not descending), numbers[-1] - descending
    else:
        begin = end = 0 if cut is None else int(cut.key)
    return Page(
        around.count,
        rows,
        Cut(backward=True, key=b"%d" % begin) if before else None,
        Cut(backward=False, key=b"%d" % end) if after else None,
    )


def member_page(
    rows: list[T],
    places: list[tuple[int, bytes]],
    around: Around,
    cut: Cut | None,
) -> Page[T]:
    """Give a page of a list of members.

    `places` are partition and mixed id of each row, in the list's order.
    """
    before, after = _sides(around, backward=cut is not None and cut.backward)
    first = last = None
    if places:
        if before:
            partition, key = places[0]
            first = Cut(backward=True, after=False, partition=partition, key=key)
        if after:
            partition, key = places[-1]
            last = Cut(backward=False, partition=partition, key=key)
    elif cut is not None:
        first = msgspec.structs.replace(cut, backward=True) if before else None
        last = msgspec.structs.replace(cut, backward=False) if after else None
    return Page(around.count, rows, first, last)


def _sides(around: Around, *, backward: bool) -> tuple[bool, bool]:
    """Whether rows lie before and after, in the list's order."""
    return (around.more, around.other) if backward else (around.other, around.more)
