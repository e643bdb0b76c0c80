"""Patterns: `*` stands for any run of characters, `?` for one, everything else for itself.

Texts and patterns are compared without case, character by character: they are folded to texts of
the same length, so `ß`, of which full case folding makes two, is one. Nothing goes back: a match
walks over the text once, whatever the pattern. Pure: no I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def folded(text: str) -> str:
    """Fold a text to one of the same length."""
    full = text.casefold()
    # A folding is never shorter, so of the same length it is character for character.
    return full if len(full) == len(text) else "".join(map(_folded_one, text))


def _folded_one(character: str) -> str:
    for one in (character.casefold(), character.lower()):
        if len(one) == 1:
            return one
    return character


def matcher(pattern: str) -> Callable[[str], bool]:
    """Bind a folded pattern: the function tells whether a folded text is like it, as a whole.

    What stands between two `*` is looked for where it first occurs, and never again.
    """
    head, *rest = pattern.split("*")
    if not rest:
        whole = _at(head)
        return lambda text: len(text) == len(head) and whole(text, 0)
    *between, tail = rest
    starts, ends = _at(head), _at(tail)
    finders = [_finder(piece) for piece in between if piece]
    least = sum(map(len, rest), len(head))

    def matches(text: str) -> bool:
        end = len(text) - len(tail)
        if len(text) < least or not starts(text, 0) or not ends(text, end):
            return False
        at = len(head)
        for find in finders:
            at = find(text, at, end)
            if at < 0:
                return False
        return True

    return matches


def _at(piece: str) -> Callable[[str, int], bool]:
    """Bind a piece of a pattern: whether it stands at a place of a text that is long enough."""
    runs, at = [], 0
    for run in piece.split("?"):
        if run:
            runs.append((at, run))
        at += len(run) + 1
    return lambda text, start: all(text.startswith(run, start + at) for at, run in runs)


def _finder(piece: str) -> Callable[[str, int, int], int]:
    """Bind a piece of a pattern: where it first ends between two places of a text; -1: nowhere."""
    size = len(piece)
    if "?" not in piece:

        def find(text: str, start: int, end: int) -> int:
            found = text.find(piece, start, end)
            return found if found < 0 else found + size

        return find
    # Bit n of the state: the last n + 1 characters are the first ones of the piece. So each
    # character of the text is looked at once.
    any_of = sum(1 << at for at, each in enumerate(piece) if each == "?")
    fitting = dict.fromkeys(piece, any_of)
    for at, each in enumerate(piece):
        fitting[each] |= 1 << at
    goal = 1 << (size - 1)

    def walk(text: str, start: int, end: int) -> int:
        state = 0
        for at in range(start, end):
            state = (state << 1 | 1) & fitting.get(text[at], any_of)
            if state & goal:
                return at + 1
        return -1

    return walk
