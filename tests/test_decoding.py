"""From bytes to a struct, and what is said of what does not fit."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta

from service.decoding import decoded, misfit, plain, query_of, raw_values
from service.errors import Invalid


class Shape(msgspec.Struct, forbid_unknown_fields=True):
    """A body."""

    ids: list[str]


class Parameters(msgspec.Struct):
    """A query string."""

    size: Annotated[int, Meta(ge=1)] = 20
    deep: bool = False
    name: str | None = None
    tags: list[str] = []


def refused(data: bytes) -> tuple[str | None, str]:
    with pytest.raises(Invalid) as caught:
        decoded(msgspec.json.Decoder(Shape), Shape, data)
    return caught.value.field, str(caught.value)


def test_a_body_becomes_its_struct() -> None:
    found = decoded(msgspec.json.Decoder(Shape), Shape, b' {"ids": ["a"]} ')

    assert found == Shape(["a"])


def test_an_object_that_javascript_did_not_encode_is_named_as_such() -> None:
    field, said = refused(b"[object Object]")

    assert field is None
    assert "JSON.stringify" in said


def test_what_does_not_fit_is_said_with_field_and_place() -> None:
    assert refused(b'{"ids":["a",1]}') == ("ids", "Expected `str`, got `int` - at `$.ids[1]`")
    assert refused(b"{}") == ("ids", "Object missing required field `ids`")
    assert refused(b'{"ids":[],"x":1}') == ("x", "Object contains unknown field `x`")
    assert refused(b"[]") == (None, "Expected `object`, got `array`")
    assert refused(b"") == (None, "A JSON body is required, and this one is empty.")
    assert refused(b"\xff")[1] in ("The body is not valid UTF-8.", refused(b"!")[1])


def test_a_sentence_about_a_part_of_a_field_names_the_field() -> None:
    assert misfit("no - at `$.a[1].b`").field == "a"
    assert misfit("no - at `$[1].b`").field is None
    assert misfit("no").field is None


def test_a_query_string_becomes_its_struct() -> None:
    assert query_of("", Parameters) == Parameters()
    assert query_of("size=3&deep=true&name=&tags=a&tags=b&&", Parameters) == Parameters(
        3, deep=True, name="", tags=["a", "b"]
    )


@pytest.mark.parametrize("query", ["x=1", "y", "size=3&sizes=4", "=1"])
def test_a_parameter_that_there_is_not_is_refused_with_those_there_are(query: str) -> None:
    """`?custom_ids=eve` gave all members of a group, for the parameter is called `custom_id`."""
    with pytest.raises(Invalid, match="There are: size, deep, name, tags"):
        query_of(query, Parameters)


def test_a_value_that_is_none_of_those_there_are_is_refused_with_them() -> None:
    class Ordered(msgspec.Struct):
        ordering: Literal["up", "down"] | None = None

    with pytest.raises(Invalid, match="There are: up, down"):
        query_of("ordering=sideways", Ordered)


@pytest.mark.parametrize(
    ("query", "field"),
    [("size=0", "size"), ("size=1&size=1", "size"), ("deep=perhaps", "deep"), ("deep", "deep")],
)
def test_a_parameter_that_does_not_fit_is_named(query: str, field: str) -> None:
    with pytest.raises(Invalid) as caught:
        query_of(query, Parameters)

    assert caught.value.field == field


def test_names_and_values_are_decoded_once() -> None:
    assert plain("a%20b+c%2Bd%2525") == "a b c+d%25"
    assert query_of("n%61me=%2B", Parameters).name == "+"
    with pytest.raises(Invalid, match="UTF-8"):
        plain("%ff")


def test_raw_values_are_as_the_client_wrote_them() -> None:
    assert raw_values("tags=a%3Ab:c&x=1&t%61gs=d", "tags") == ["a%3Ab:c", "d"]


@pytest.mark.parametrize("value", ["null", "NULL"])
def test_null_is_no_value_of_a_parameter_and_not_passed_over(value: str) -> None:
    """`page=null` was the first page, and `membership_type=null` no filter."""

    class Filters(msgspec.Struct):
        page: int | None = None
        name: str | None = None

    assert query_of(f"name={value}", Filters).name == value
    with pytest.raises(Invalid, match=f"`{value}` is no value of `page`"):
        query_of(f"page={value}", Filters)
