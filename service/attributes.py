"""What an attribute of a profile is in the store: since when, and its value as JSON.

Two faces write and show attributes. A value is a JSON string, number, truth value, null (the name
alone counts) or list of strings; the Profile Groups face shows and takes each as a text. The limits
are those that the Group Identity API documents, and what one script can bear. Pure: no I/O.
"""

from __future__ import annotations

import msgspec

NAME_CHARACTERS = 256
VALUE_CHARACTERS = 4096
LIST_ITEMS = 1000
ITEM_CHARACTERS = 512

MANY = 200
"""Attributes of one profile at most: to replace them all takes a script 1.6 ms (measured)."""
MANY_BYTES = 1_048_576
"""Bytes that their names and values may have together."""

KEPT_SECONDS = 30 * 86_400
"""How long it is remembered when an attribute was deleted: an older write does not revive it."""
DELETIONS = 200
"""Deletions that are remembered of one profile, the latest."""

RESERVED = frozenset({
    "$age", "$firstname", "$lastname", "$gender", "$mobile", "$address", "$city", "$state", "$zip",
    "$country",
})  # fmt: skip
"""Names that mean the same in any case: mParticle's documents write both `$Address` and
`$address`."""

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(str | int | float | bool | None | list[str])


class ProfileAttribute(msgspec.Struct, frozen=True):
    """An attribute as it is stored: `value` is JSON.

    It was last written at `time_us`, and has had this value without a break since `since_us`.
    """

    name: str
    value: bytes
    time_us: int
    since_us: int

    @property
    def text(self) -> str:
        """The value as a text: a string as it is, null as '', anything else as its JSON."""
        if self.value.startswith(b'"'):
            return msgspec.json.decode(self.value, type=str)
        return "" if self.value == b"null" else self.value.decode()


def canonical_name(name: str) -> str:
    """Give the name under which an attribute is stored: its own, but for reserved names."""
    if name.startswith("$") and (lower := name.lower()) in RESERVED:
        return lower
    return name


def value_of(text: str) -> bytes:
    """Give the JSON value of a text: a string.

    A text that is too long for one, and is the JSON of a list of strings, is that list: so it was
    shown, and so it comes back.

    :raises ValueError: it has NULs, or is too long; the sentence says what is allowed
    """
    if "\0" in text:
        message = "NUL characters are not allowed"
        raise ValueError(message)
    if len(text) <= VALUE_CHARACTERS:
        return _ENCODER.encode(text)
    try:
        items = msgspec.json.decode(text, type=list[str])
    except (msgspec.DecodeError, RecursionError):
        items = []
    if not items or len(items) > LIST_ITEMS or max(map(len, items)) > ITEM_CHARACTERS:
        message = (
            f"a value has at most {VALUE_CHARACTERS:,} characters; a JSON list of strings"
            f" {LIST_ITEMS:,} of {ITEM_CHARACTERS}"
        )
        raise ValueError(message)
    return _ENCODER.encode(items)


def as_attribute(name: bytes, held: bytes) -> ProfileAttribute | None:
    """Read an attribute as it is stored, as `<time> <since> <value>`; None: it was deleted."""
    time_us, _, rest = held.partition(b" ")
    since_us, _, value = rest.partition(b" ")
    if not value:
        return None
    return ProfileAttribute(name.decode(), value, int(time_us), int(since_us))


def is_sound(name: bytes, held: bytes) -> bool:
    """Tell whether a stored name, and what is stored under it, is an attribute or a deletion."""
    try:
        sound = 0 < len(name.decode()) <= NAME_CHARACTERS and b"\0" not in name
        attribute = as_attribute(name, held)
        if attribute is None:
            return sound and held.isdigit()
        _DECODER.decode(attribute.value)
    except (ValueError, RecursionError):
        return False
    time, since = held.split(b" ", 2)[:2]
    return sound and time.isdigit() and since.isdigit() and attribute.since_us <= attribute.time_us
