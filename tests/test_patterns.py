"""Patterns: what is like one, and that none of them is slow."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.patterns import folded, matcher


def like(pattern: str, text: str) -> bool:
    return matcher(folded(pattern))(folded(text))


def naively_like(pattern: str, text: str) -> bool:
    """Row by row: which beginnings of the text are like the pattern so far."""
    ends = {0}
    for each in pattern:
        if each == "*":
            ends = {at for end in ends for at in range(end, len(text) + 1)}
        else:
            ends = {end + 1 for end in ends if end < len(text) and each in ("?", text[end])}
    return len(text) in ends


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("", [""], ["a"]),
        ("*", ["", "a", "a\nb", "*"], []),
        ("?", ["a", "?", "\n", "ß", "🐕"], ["", "ab"]),
        ("dog", ["dog", "DOG", "dOg"], ["", "do", "dogs", " dog"]),
        ("bl?e", ["blue", "BLAE", "bl?e"], ["ble", "bluue", "blu"]),
        ("b*e", ["be", "blue", "b*e", "bee", "Be\ne"], ["b", "e", "bed", "abe"]),
        ("*dog", ["dog", "hot dog", "dogdog"], ["dogs", "do"]),
        ("dog*", ["dog", "dogs", "dogdog"], ["hot dog", "do"]),
        ("*og*", ["og", "dogs", "ogog"], ["o g", ""]),
        ("a*a", ["aa", "aba", "aaa"], ["a", "ab"]),
        ("ab*ba", ["abba", "abxba"], ["aba", "ab"]),
        ("*a*b*", ["ab", "xaxbx", "aab"], ["ba", "a", ""]),
        ("*ab*ab", ["abab", "ababab"], ["ab", "aba"]),
        ("*ab*bc", ["abbc", "xabxbc"], ["xabc", "abc"]),
        ("ab*ba*", ["abba", "abxbax"], ["abax", "aba"]),
        ("?*?", ["ab", "abc"], ["a", ""]),
        ("*?a*", ["xa", "aa", "xxaxx"], ["a", "", "ax"]),
        ("*a?c*", ["abc", "aabc", "xa?cx", "aaac"], ["ac", "a", "acc"[:2]]),
        ("*a??b?", ["axxbx", "aaxxbx"], ["axxb", "axbx"]),
        ("*?a?*a?", ["xaxax"], ["xaax", "axax"]),
        ("**", ["", "a"], []),
        ("a**b", ["ab", "axb"], ["a", "b"]),
        ("[a-z]\\.+(", ["[A-Z]\\.+("], ["b.x("]),
    ],
)
def test_a_pattern_is_like_what_it_says(pattern, yes, no):
    assert yes == [text for text in [*yes, *no] if like(pattern, text)]


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("straße", "STRAßE"),
        ("straße", "STRAẞE"),
        ("δ?", "Δς"),
        ("ÄÖ*", "äöü"),
        ("i̇*", "i̇x"),
        ("ᾳ?", "ᾼx"),
    ],
)
def test_case_is_folded_character_by_character(pattern, text):
    assert like(pattern, text)


def test_a_character_stays_one_whatever_it_is_folded_to():
    assert all(len(folded(each)) == 1 for each in map(chr, range(0x110000)))
    assert not like("strasse", "straße")
    assert not like("??", "ß")
    assert like("?", "ﬃ")


def made_of(characters, size):
    return st.lists(st.sampled_from(characters), max_size=size).map("".join)


PATTERNS = made_of("ab*", 8) | made_of("ab*?", 8) | made_of("ab*?ßẞİ", 12)
TEXTS = made_of("ab", 10) | made_of("abAB?*ßİ", 24)


@given(PATTERNS, TEXTS)
@settings(max_examples=1000)
@example("*a?a*b", "aaab")
@example("*?b?*b", "abbb")
def test_every_pattern_is_like_the_same_texts_as_row_by_row(pattern, text):
    assert naively_like(folded(pattern), folded(text)) == like(pattern, text)


def best_of(check, text, tries=5):
    best = float("inf")
    for _ in range(tries):
        begun = time.perf_counter()
        check(text)
        best = min(best, time.perf_counter() - begun)
    return best


SLOW_ELSEWHERE = [
    "*a" * 127 + "*b",
    "*" + "?" * 253 + "b*",
    "*" + "a" * 253 + "?b",
    "*" + "?a" * 126 + "b*",
    "*a?" * 84 + "*b",
    "*" + "a" * 126 + "b" + "a" * 126 + "*",
    "*" + "a" * 49 + "b" + "a" * 49 + "*",
    "?*" * 127 + "b",
    "*" + "a" * 250 + "b*",
]


@pytest.mark.alone
@pytest.mark.parametrize("pattern", SLOW_ELSEWHERE, ids=lambda pattern: pattern[:12])
def test_no_pattern_takes_more_than_a_few_walks_over_the_longest_text(pattern):
    """As many rounds of a loop as the text has characters, by one that does next to nothing."""
    text = "a" * 4096

    def walk(text):
        state = 0
        for each in text:
            state = (state << 1 | 1) & len(each)
        return state

    check = matcher(folded(pattern))
    assert best_of(check, text) <= 12 * best_of(walk, text)


@pytest.mark.alone
@pytest.mark.parametrize("pattern", SLOW_ELSEWHERE, ids=lambda pattern: pattern[:12])
def test_a_text_of_ten_times_the_length_takes_ten_times_as_long_and_not_a_hundred(pattern):
    check = matcher(folded(pattern))
    short, long = best_of(check, "a" * 40_000), best_of(check, "a" * 400_000)
    assert long <= 30 * short + 0.002
