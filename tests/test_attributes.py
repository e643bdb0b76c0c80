"""Attributes of profiles as they are stored and shown."""

from __future__ import annotations

import pytest

from service import attributes
from service.attributes import ProfileAttribute, as_attribute, is_sound, value_of

LONG_LIST = "[" + ",".join(['"' + "é" * 512 + '"'] * 1000) + "]"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b'"a \\"b\\" \\\\ \\n"', 'a "b" \\ \n'),
        (b'""', ""),
        (b"12", "12"),
        (b"1.0", "1.0"),
        (b"-0.50", "-0.50"),
        (b"true", "true"),
        (b"null", ""),
        (b'["a","b"]', '["a","b"]'),
        ('"é🙂"'.encode(), "é🙂"),
    ],
)
def test_every_value_is_shown_as_a_text(value, text):
    assert text == ProfileAttribute("name", value, 2, 1).text


@pytest.mark.parametrize(
    "text", ["", "true", "12", "null", "[]", '"', "\\", "\n", "é🙂", "x" * 4096]
)
def test_a_text_is_a_string(text):
    assert text == ProfileAttribute("name", value_of(text), 1, 1).text
    assert value_of(text).startswith(b'"')


def test_a_list_that_is_too_long_for_a_text_comes_back_as_the_list_it_is():
    value = value_of(LONG_LIST)
    assert (LONG_LIST, b"[") == (ProfileAttribute("name", value, 1, 1).text, value[:1])
    assert value == value_of(LONG_LIST.replace(",", ", "))


@pytest.mark.parametrize(
    "text",
    [
        "a\0b",
        "x" * 4097,
        "[" * 5000,
        "[" + "1," * 3000 + "1]",
        "[]" + " " * 5000,
        '["' + "x" * 5000 + '"]',
        "[" + ",".join(['"x"'] * 1001) + " " * 1000 + "]",
    ],
)
def test_a_value_that_is_too_long_is_refused(text):
    with pytest.raises(ValueError, match=r"NUL|at most 4,096 characters"):
        value_of(text)


def test_what_is_stored_says_since_when():
    held = as_attribute(b"k", b'20 10 "a b"')
    assert ProfileAttribute("k", b'"a b"', time_us=20, since_us=10) == held


def test_a_deleted_attribute_is_none():
    assert as_attribute(b"k", b"20") is None
    assert is_sound(b"k", b"20")


@pytest.mark.parametrize("value", [b'"x"', b"1", b"1.5", b"true", b"null", b'["a"]', b"[]"])
def test_what_a_face_writes_is_sound(value):
    assert is_sound("é".encode(), b"20 10 " + value)


@pytest.mark.parametrize(
    ("name", "held"),
    [
        (b"k", b""),
        (b"k", b"now"),
        (b"k", b"-1"),
        (b"k", b'"x"'),
        (b"k", b'20 "x"'),
        (b"k", b"20 10 "),
        (b"k", b"20 10 {}"),
        (b"k", b"20 10 [1]"),
        (b"k", b"20 10 nothing"),
        (b"k", b"20 10 " + b"[" * 5000),
        (b"k", b'10 20 "x"'),
        (b"k", b'+20 10 "x"'),
        (b"k", b'20 1_0 "x"'),
        (b"k", b'20 10 "\xff"'),
        (b"", b'20 10 "x"'),
        (b"a\0b", b'20 10 "x"'),
        (b"\xff", b'20 10 "x"'),
        (b"x" * 257, b'20 10 "x"'),
        (b"k", b"9" * 5000 + b' 10 "x"'),
    ],
)
def test_what_no_face_writes_is_not_sound(name, held):
    assert not is_sound(name, held)


def test_a_name_has_characters_not_bytes():
    assert is_sound(("é" * attributes.NAME_CHARACTERS).encode(), b"20 10 1")
