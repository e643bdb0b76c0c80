"""Batches as mParticle's SDKs upload them: what one says about its user, and what it may say.

A batch is read into a `UserUpdate`: who is meant, and what is to be written. A value becomes what
`attributes` stores: a text, null or a list of texts. Whatever is wrong with a batch is said here,
before anything of it is done. Pure: no I/O, no clock.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

import msgspec
from msgspec import Meta

from service.attributes import (
    ITEM_CHARACTERS,
    LIST_ITEMS,
    NAME_CHARACTERS,
    VALUE_CHARACTERS,
    canonical_name,
)
from service.decoding import decoded
from service.errors import Invalid, TooLarge
from service.keys import IDENTITY_CODES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BODY_BYTES = 256 * 1024
"""A request with more is 413."""
BATCH_BYTES = 128 * 1024
BATCHES = 100
"""Batches of one request."""
CHANGES = 100
"""Attributes that one batch sets, and as many that it deletes."""
IDENTITY_CHARACTERS = 255
"""Of an identity's value: the documents say nothing, the other face has as many."""
HISTORICAL_US = 72 * 3_600_000_000
"""How old events are at least that are uploaded as historical."""

CUSTOMER_ID = "customer_id"
MPID = "mpid"

HIERARCHY = (
    "customer_id", "mobile_number", "phone_number_2", "phone_number_3", "email", "other",
    "facebook", "google", "twitter", "microsoft", "yahoo",
)  # fmt: skip
"""Types of identities in the order in which they say who is meant; all others follow."""

_ORDERED = (*HIERARCHY, *(kind for kind in IDENTITY_CODES if kind not in {*HIERARCHY, MPID}))

KINDS: dict[str, str] = {
    **{kind: kind for kind in _ORDERED},
    "customerid": CUSTOMER_ID,
    "facebook_custom_audience_id": "facebookcustomaudienceid",
    **{f"other_id_{n}": f"other{n}" for n in range(2, 11)},
}
"""What a batch calls an identity -> its type. The Python and Node SDKs write `customerid`."""

_RANKS = {kind: rank for rank, kind in enumerate(_ORDERED)}

ENVIRONMENTS = {
    None: "production",
    "production": "production",
    "unknown": "production",
    "development": "development",
}

MPIDS = range(-(2**63), 2**63)
ATTRIBUTE_CHANGE = "user_attribute_change"

_NAMED = 60
"""Characters of a name that a sentence repeats."""


_NO_NUL = {"pattern": "^[^\\u0000]*$"}
_NAME = {"type": "string", "minLength": 1, "maxLength": NAME_CHARACTERS, **_NO_NUL}
_SCALAR = {"type": ["string", "number", "boolean", "null"], **_NO_NUL}

Value = Annotated[
    msgspec.Raw,
    Meta(
        description="A text, a number, a truth value, null (a tag), or a list of those.",
        extra_json_schema={
            "anyOf": [
                {**_SCALAR, "maxLength": VALUE_CHARACTERS},
                {
                    "type": "array",
                    "items": {**_SCALAR, "maxLength": ITEM_CHARACTERS},
                    "maxItems": LIST_ITEMS,
                },
            ]
        },
    ),
]
Attributes = Annotated[
    dict[str, Value], Meta(extra_json_schema={"maxProperties": CHANGES, "propertyNames": _NAME})
]
Deleted = Annotated[
    list[Annotated[str, Meta(extra_json_schema=_NAME)]],
    Meta(description="Names of attributes.", extra_json_schema={"maxItems": CHANGES}),
]
IdentityText = Annotated[str, Meta(extra_json_schema={"maxLength": IDENTITY_CHARACTERS, **_NO_NUL})]
Identities = Annotated[
    dict[str, IdentityText | None],
    Meta(description=f"By type: {', '.join(KINDS)}. Others are passed over."),
]
EnvironmentName = Annotated[
    str,
    Meta(
        description="`production`, unless it says otherwise.",
        extra_json_schema={"enum": [name for name in ENVIRONMENTS if name is not None]},
    ),
]
MpidText = Annotated[str, Meta(extra_json_schema={"pattern": "^-?[0-9]{1,18}$"})]
MpidNumber = Annotated[
    int, Meta(extra_json_schema={"minimum": MPIDS.start, "maximum": MPIDS.stop - 1})
]
"""These are for the document alone: what does not fit is refused with a sentence that says more."""


class EventData(msgspec.Struct):
    """What of an event counts here: when it was, and of which attribute it tells."""

    timestamp_unixtime_ms: Annotated[int, Meta(ge=0)] | None = None
    user_attribute_name: str | None = None


class Event(msgspec.Struct):
    """An event. Of those that tell of an attribute's change the time counts, and nothing else."""

    SCHEMA: ClassVar[dict[str, object]] = {"required": ["event_type"]}

    event_type: Annotated[str, Meta(extra_json_schema={"minLength": 1})] | None = None
    data: EventData | None = None


class Batch(msgspec.Struct):
    """What is known of one user, as the Events API takes it; what is not named here is ignored."""

    SCHEMA: ClassVar[dict[str, object]] = {
        "anyOf": [{"required": ["mpid"]}, {"required": ["user_identities"]}]
    }

    environment: EnvironmentName | None = None
    mpid: MpidNumber | MpidText | None = None
    user_identities: Identities | None = None
    user_attributes: Attributes | None = None
    deleted_user_attributes: Deleted | None = None
    events: list[Event] | None = None
    source_request_id: str | None = None


class Change(NamedTuple):
    """An attribute that is set to a JSON value, or deleted (None), as of a time.

    Without a time of its own it is as of when it is received.
    """

    name: str
    value: bytes | None
    time_us: int | None


class Identity(NamedTuple):
    """What may resolve to a profile."""

    kind: str
    value: str


class UserUpdate(msgspec.Struct, frozen=True, gc=False):
    """What one batch says: who is meant, by mpid or by identities in their order, and the changes.

    Names of changes are those under which attributes are stored, and none comes twice.
    """

    environment: str
    mpid: int | None
    identities: tuple[Identity, ...]
    changes: tuple[Change, ...]
    request_id: str | None


_SINGLE = msgspec.json.Decoder(Batch)
_MANY = msgspec.json.Decoder(list[msgspec.Raw])
_TEXT = msgspec.json.Decoder(str)
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])
_ENCODE = msgspec.json.Encoder().encode


def require_utf8(body: bytes) -> None:
    """See to it that a body is valid UTF-8, those parts of it that are ignored, too.

    :raises Invalid: it is not
    """
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise Invalid("The body is not valid UTF-8.") from error


def cut_bulk(body: bytes) -> Sequence[msgspec.Raw]:
    """Cut the body of a bulk request into its batches, which are not looked into.

    :raises Invalid: it is no JSON array of 1 to `BATCHES` batches
    """
    require_utf8(body)
    batches: list[msgspec.Raw] = decoded(_MANY, None, body)  # type: ignore[assignment]
    if not 0 < len(batches) <= BATCHES:
        message = f"A bulk has 1 to {BATCHES} batches, and this one has {len(batches)}."
        raise Invalid(message)
    return batches


def read_batch(raw: bytes | msgspec.Raw, *, historical_at_us: int | None = None) -> UserUpdate:
    """Read one batch.

    :param historical_at_us: it is uploaded as historical, and received then
    :raises Invalid: it is not what the documents say, and nothing of it may be done
    :raises TooLarge: it has more than `BATCH_BYTES`
    """
    data = bytes(raw)
    if len(data) > BATCH_BYTES:
        raise TooLarge(f"A batch has at most {BATCH_BYTES} bytes, and this one {len(data)}.")
    batch: Batch = decoded(_SINGLE, Batch, data)  # type: ignore[assignment]
    if batch.environment not in ENVIRONMENTS:
        message = "`environment` is `production` or `development` - at `$.environment`"
        raise Invalid(message, "environment")
    events = batch.events or ()
    times = _times(events)
    otherwise = None
    if historical_at_us is not None:
        times, otherwise = {}, _latest_us(events, historical_at_us)
    mpid = None if batch.mpid is None else _mpid(batch.mpid)
    identities = _identities(batch.user_identities or {})
    if mpid is None and not identities:
        message = "No user ID provided: a batch names its user by `mpid` or `user_identities`."
        raise Invalid(message)
    changes = [
        Change(name, value, times.get(name, otherwise)) for name, value in _changes(batch).items()
    ]
    return UserUpdate(
        ENVIRONMENTS[batch.environment],
        mpid,
        identities,
        tuple(changes),
        batch.source_request_id or None,
    )


def _mpid(given: int | str) -> int:
    """Read an mpid: a signed number of 64 bits, or its text (JavaScript has no such numbers)."""
    number = given if isinstance(given, int) else _parsed(given)
    if number is None or number not in MPIDS:
        raise Invalid("`mpid` is a signed integer of 64 bits - at `$.mpid`", "mpid")
    return number


_LONGEST_MPID = len(str(MPIDS.start))


def _parsed(text: str) -> int | None:
    digits = text.removeprefix("-")
    if len(text) > _LONGEST_MPID or not (digits.isascii() and digits.isdigit()):
        return None
    return number if str(number := int(text)) == text else None


def _identities(given: dict[str, str | None]) -> tuple[Identity, ...]:
    """Give the identities in the order in which they count. Types that there are not are ignored.

    So are empty values: nobody is meant by them.
    """
    found: dict[str, str] = {}
    for name, value in given.items():
        kind = KINDS.get(name)
        if kind is None or not value:
            continue
        where = f"at `$.user_identities.{name}`"
        if len(value) > IDENTITY_CHARACTERS or "\0" in value:
            message = f"An identity has at most {IDENTITY_CHARACTERS} characters and no NUL"
            raise Invalid(f"{message} - {where}", "user_identities")
        if found.setdefault(kind, value) != value:
            raise Invalid(f"`{kind}` is given twice, and not alike - {where}", "user_identities")
    return tuple(Identity(kind, found[kind]) for kind in sorted(found, key=_RANKS.__getitem__))


def _times(events: Iterable[Event]) -> dict[str, int]:
    """Give when attributes changed, by stored name, as events tell: the latest of each."""
    times: dict[str, int] = {}
    for place, event in enumerate(events):
        if not event.event_type:
            message = 'Required event field "event_type" is missing or empty.'
            raise Invalid(f"{message} - at `$.events[{place}]`", "events")
        if event.event_type != ATTRIBUTE_CHANGE:
            continue
        data = event.data
        if data is None or not data.user_attribute_name:
            message = 'Required event field "user_attribute_name" is missing or empty.'
            raise Invalid(f"{message} - at `$.events[{place}].data`", "events")
        if data.timestamp_unixtime_ms is not None:
            name = canonical_name(data.user_attribute_name)
            times[name] = max(times.get(name, 0), data.timestamp_unixtime_ms * 1000)
    return times


def _latest_us(events: Sequence[Event], now_us: int) -> int:
    """Give the time of the latest of historical events, each of which has to have an old one."""
    if not events:
        raise Invalid("A historical batch needs events - at `$.events`", "events")
    latest_us = 0
    for place, event in enumerate(events):
        at_ms = None if event.data is None else event.data.timestamp_unixtime_ms
        if at_ms is None or at_ms * 1000 > now_us - HISTORICAL_US:
            message = (
                "A historical event needs a `timestamp_unixtime_ms` of 72 hours ago or earlier"
            )
            raise Invalid(f"{message} - at `$.events[{place}].data`", "events")
        latest_us = max(latest_us, at_ms * 1000)
    return latest_us


def _changes(batch: Batch) -> dict[str, bytes | None]:
    """Give what is set and deleted, by stored name. What is both is set."""
    deleted, attributes = batch.deleted_user_attributes or (), batch.user_attributes or {}
    for what, given in (("user_attributes", attributes), ("deleted_user_attributes", deleted)):
        if len(given) > CHANGES:
            message = f"A batch has at most {CHANGES} of them, and this one {len(given)}"
            raise Invalid(f"{message} - at `$.{what}`", what)
    changes: dict[str, bytes | None] = {}
    for name in deleted:
        changes[_stored_name(name, "deleted_user_attributes")] = None
    for name, raw in attributes.items():
        stored = _stored_name(name, "user_attributes")
        try:
            changes[stored] = value_of(bytes(raw))
        except ValueError as error:
            where = f"at `$.user_attributes.{_shown(name)}`"
            raise Invalid(f"{error} - {where}", "user_attributes") from error
    return changes


def _shown(name: str) -> str:
    """Give the beginning of a name as a sentence, or a line of the log, may hold it."""
    return "".join(each if each.isprintable() else " " for each in name[:_NAMED])


def _stored_name(name: str, where: str) -> str:
    if not 0 < len(name) <= NAME_CHARACTERS or "\0" in name:
        message = f"The name of an attribute has 1 to {NAME_CHARACTERS} characters and no NUL"
        raise Invalid(f"{message} - at `$.{where}.{_shown(name)}`", where)
    return canonical_name(name)


def value_of(raw: bytes) -> bytes:
    """Give what is stored of a JSON value: a text, null, or a list of texts.

    Numbers and truth values become their text, and so they are in a list; null there becomes the
    empty text.

    :raises ValueError: it is an object, or longer than allowed; the sentence says what is allowed
    """
    if raw == b"null":
        return raw
    if raw[:1] == b"[":
        items = _ITEMS.decode(raw)
        if len(items) > LIST_ITEMS:
            message = f"a list has at most {LIST_ITEMS:,} entries, and this one {len(items):,}"
            raise ValueError(message)
        return _ENCODE([_text(bytes(item), ITEM_CHARACTERS) for item in items])
    return _ENCODE(_text(raw, VALUE_CHARACTERS))


def _text(raw: bytes, characters: int) -> str:
    """Give the text of a scalar."""
    first = raw[:1]
    if first == b'"':
        text = _TEXT.decode(raw)
        if "\0" in text:
            message = "NUL characters are not allowed"
            raise ValueError(message)
    elif first in b"{[":
        message = "a value is a text, a number, a truth value, null, or a list of those"
        raise ValueError(message)
    elif raw == b"null":
        text = ""
    elif first in b"tf" or not (b"e" in raw or b"E" in raw):
        text = raw.decode()
    else:
        text = _plain(raw)
    if len(text) > characters:
        what = "an entry of a list" if characters == ITEM_CHARACTERS else "a value"
        message = f"{what} has at most {characters:,} characters, and this one {len(text):,}"
        raise ValueError(message)
    return text


def _plain(raw: bytes) -> str:
    """Give a number that is written with an exponent without one: that of the nearest double."""
    number = float(raw)
    if number in (float("inf"), float("-inf")):
        message = "the number is too large"
        raise ValueError(message)
    return format(Decimal(repr(number)), "f")
