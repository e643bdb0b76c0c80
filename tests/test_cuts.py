"""Positions in lists: where a page begins and what it leaves on either side, on plain lists."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.cuts import Around, Cut, Page, member_page, number_bound, number_page
from tests.model import stroll

steps = st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=20)


def read_numbers(numbers, cut, limit, *, descending):
    """A page of numbers, as the store reads it: from a bound on, in one direction."""
    up = descending == (cut is not None and cut.backward)
    bound, other = number_bound(cut, up=up), number_bound(cut, up=not up)
    ahead = [n for n in numbers if not bound or (n >= int(bound) if up else n <= int(bound))]
    behind = [n for n in numbers if other and (n <= int(other) if up else n >= int(other))]
    ahead.sort(reverse=not up)
    around = Around(len(ahead) > limit, bool(behind), len(numbers))
    rows = ahead[:limit]
    return number_page(rows, rows, around, cut, descending=descending)


@given(st.sets(st.integers(1, 60)), steps, st.booleans())
async def test_a_list_by_number_goes_to_and_fro(numbers, steps, descending):
    async def read(cut, size):
        return read_numbers(numbers, cut, size, descending=descending)

    await stroll(read, sorted(numbers, reverse=descending), steps)


def read_members(places, cut, limit):
    """A page of (partition, id), as the store reads it."""
    backward = cut is not None and cut.backward
    if cut is None:
        before, after = [], places
    else:
        at = (cut.partition, cut.key)
        after = [each for each in places if each > at or (each == at and not cut.after)]
        before = [each for each in places if each not in after]
    ahead, behind = (before[::-1], after) if backward else (after, before)
    rows = ahead[:limit][::-1] if backward else ahead[:limit]
    around = Around(len(ahead) > limit, bool(behind), len(places))
    return member_page(rows, rows, around, cut)


@given(st.sets(st.tuples(st.integers(0, 3), st.binary(min_size=1, max_size=1))), steps)
async def test_a_list_of_members_goes_to_and_fro(places, steps):
    async def read(cut, size):
        return read_members(sorted(places), cut, size)

    await stroll(read, sorted(places), steps)


def test_from_the_very_end_there_is_no_bound():
    assert (b"", b"") == (number_bound(None, up=True), number_bound(None, up=False))


def test_a_bound_lies_beside_the_cut():
    cut = Cut(backward=False, key=b"7")
    assert (b"8", b"7") == (number_bound(cut, up=True), number_bound(cut, up=False))


def test_an_empty_page_of_members_keeps_its_cut():
    cut = Cut(backward=False, after=True, partition=2, key=b"x")
    page: Page[bytes] = member_page([], [], Around(more=False, other=True, count=3), cut)
    back = Cut(backward=True, after=True, partition=2, key=b"x")
    assert (back, None) == (page.first, page.last)


def test_an_empty_page_of_numbers_keeps_its_cut():
    cut = Cut(backward=True, key=b"7")
    page: Page[bytes] = number_page([], [], Around(more=False, other=True, count=3), cut)
    assert (None, Cut(backward=False, key=b"7")) == (page.first, page.last)


def test_a_row_that_vanished_between_two_reads_does_not_move_the_page():
    around = Around(more=True, other=False, count=9)
    page = number_page(["two"], [1, 2, 3], around, None)
    assert Cut(backward=False, key=b"3") == page.last
