"""From bytes to a struct: JSON bodies and query strings, and sentences about what does not fit.

Pure. The sentences are msgspec's, which end in where it was (`$.profile_ids[3]`).
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin
from urllib.parse import unquote_to_bytes

import msgspec

from service.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

Query = TypeVar("Query", bound=msgspec.Struct)

_UNENCODED = b"[object Object]"
"""What JavaScript makes of an object that it is to send, and the SDK leaves so on DELETE."""

_LONGEST_FIELD = 100
"""A field name that is longer is not echoed as the key of an error."""


def decoded(
    decoder: msgspec.json.Decoder[Any], body: type[msgspec.Struct] | None, data: bytes
) -> object:
    """Decode a JSON body into its struct.

    :raises Invalid: it is empty, no UTF-8, no JSON, or not what the struct says.
    """
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        if data.strip() == _UNENCODED:
            message = "The body is the text `[object Object]`, not JSON: use JSON.stringify."
            raise Invalid(message) from error
        raise misfit(str(error), body) from error
    except msgspec.DecodeError as error:
        if not data.strip():
            message = "A JSON body is required, and this one is empty."
        else:
            reason = str(error).removeprefix("JSON is malformed: ")
            if _SURROGATE.search(data) and "truncated" in reason:
                # So msgspec says it.
                reason = "a text in it holds half of a surrogate pair"
            message = f"The body is not JSON: {reason}."
        raise Invalid(message) from error
    except UnicodeDecodeError as error:
        message = "The body is not valid UTF-8."
        raise Invalid(message) from error
    except RecursionError as error:
        message = "The body is nested too deeply."
        raise Invalid(message) from error


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_WHERE = re.compile(r" - at `\$\.?([^`.\[]*)[^`]*`$")
_ROOT_FIELD = re.compile(r"^Object (?:contains unknown|missing required) field `(.*)`$", re.DOTALL)


def misfit(message: str, shape: type[msgspec.Struct] | None = None) -> Invalid:
    """Make an error of msgspec's sentence, which ends in where it was (`$.profile_ids[3]`).

    A struct may say in `INSTEAD` what to use instead of a name it does not have.
    """
    where = _WHERE.search(message)
    root = None if where else _ROOT_FIELD.match(message)
    if root is not None:
        field = root.group(1)
        if len(field) > _LONGEST_FIELD:
            return Invalid("Object contains an unknown field with a very long name - at `$`")
        instead: Mapping[str, str] = getattr(shape, "INSTEAD", {})
        return Invalid(" - ".join(filter(None, (message, instead.get(field)))), field)
    field = where.group(1) or None if where else None
    if message.startswith("Invalid enum value") and (choices := _choices(shape, field)):
        message += f". There are: {', '.join(choices)}"
    return Invalid(message, field)


def _choices(shape: type[msgspec.Struct] | None, name: str | None) -> list[str]:
    """Give what a field may be of which the annotation names every value."""
    fields = () if shape is None else msgspec.structs.fields(shape)
    return [
        choice for field in fields if field.encode_name == name for choice in _literals(field.type)
    ]


def _literals(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return list(map(str, get_args(kind)))
    return [choice for part in get_args(kind) for choice in _literals(part)]


def raw_values(query_string: str, name: str) -> list[str]:
    """Give the values of a query parameter as the client wrote them, still percent-encoded."""
    pieces = (piece.partition("=") for piece in query_string.split("&"))
    return [value for key, _, value in pieces if plain(key) == name]


def refuse(query_string: str, known: Collection[str] = ()) -> None:
    """Refuse query parameters that there are not: nobody may count on what they would do.

    :raises Invalid: one is given that is not known
    """
    for piece in query_string.split("&"):
        if piece and (name := plain(piece.partition("=")[0])) not in known:
            raise _unknown(name, known)


def _unknown(name: str, known: Collection[str]) -> Invalid:
    there_are = ", ".join(known) or "none"
    if len(name) > _LONGEST_FIELD:
        return Invalid(f"There is no parameter with this very long name. There are: {there_are}.")
    return Invalid(f"`{name}` is no parameter here - at `$.{name}`. There are: {there_are}", name)


def plain(text: str) -> str:
    """Decode a name or value of a query string.

    :raises Invalid: it is not valid UTF-8.
    """
    if "%" not in text and "+" not in text:
        return text
    try:
        return unquote_to_bytes(text.replace("+", " ")).decode()
    except UnicodeDecodeError as error:
        message = "The query string is not valid UTF-8."
        raise Invalid(message) from error


@functools.cache
def _parameters(shape: type[msgspec.Struct]) -> dict[str, bool]:
    """Give the query parameters of a struct -> whether each may be repeated."""
    hints = msgspec.structs.fields(shape)
    return {field.encode_name: isinstance(field.default_factory, type) for field in hints}


def query_of(query_string: str, shape: type[Query], *, lenient: bool = False) -> Query:
    """Convert the query string into its struct.

    :param lenient: pass over parameters that there are not
    :raises Invalid: a value does not fit, one that stands alone is given twice, or there is no
        such parameter.
    """
    parameters = _parameters(shape)
    values: dict[str, Any] = {}
    for piece in query_string.split("&"):
        key, _, value = piece.partition("=")
        name = plain(key)
        repeated = parameters.get(name)
        if repeated:
            values.setdefault(name, []).append(plain(value))
        elif repeated is None:
            if piece and not lenient:
                raise _unknown(name, parameters)
        else:
            if name in values:
                message = f"`{name}` is given more than once - at `$.{name}`"
                raise Invalid(message, name)
            values[name] = plain(value)
    try:
        query = msgspec.convert(values, shape, strict=False)
    except msgspec.ValidationError as error:
        raise misfit(str(error), shape) from error
    for name, value in values.items():
        # NOTE: convert reads the text `null` as None, and a filter would be passed over in silence.
        if getattr(query, name) is None:
            raise Invalid(f"`{value}` is no value of `{name}` - at `$.{name}`", name)
    return query
