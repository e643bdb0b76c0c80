"""Every script in lua/: its header is true, and servers of each kind take it.

Generic over the files: a new script is held to all of this by being there.
"""

from __future__ import annotations

import re
from pathlib import Path

import fakeredis
import lupa.lua51  # type: ignore[import-untyped]
import pytest
from redis.exceptions import ResponseError

from service.errors import CODES
from service.scripts import Scripts, strip_comments, strip_strings
from tests import backings

SCRIPTS = Scripts()
NAMES = SCRIPTS.names()
FOLDER = Path(str(SCRIPTS.folder))
INCLUDES = sorted(file.stem for file in (FOLDER / "include").glob("*.lua"))
FILES = sorted(FOLDER.rglob("*.lua"))

GLOBALS = {"redis", "cjson", "KEYS", "ARGV", "assert", "error", "ipairs", "math", "next", "pairs"}
GLOBALS |= {"pcall", "select", "string", "table", "tonumber", "tostring", "type", "unpack"}
"""What a script may name without declaring it. cmsgpack, struct and bit are not in fakeredis."""
FORBIDDEN = frozenset({"KEYS", "SCAN", "RANDOMKEY", "FLUSHALL", "FLUSHDB", "TIME", "DBSIZE"})
"""Commands that look past the declared slot, or at the clock (time is an argument)."""

# What `luac -l` lists for globals: compiled code names them, whatever the source looks like.
_STRING_DUMP = "return function(code) return string.dump(assert(loadstring(code))) end"

every_script = pytest.mark.parametrize("name", NAMES)
every_include = pytest.mark.parametrize("name", INCLUDES)


@pytest.fixture(scope="module")
def lua() -> lupa.lua51.LuaRuntime:
    return lupa.lua51.LuaRuntime(encoding="latin-1")


@pytest.fixture(scope="module")
def valkey():
    server = backings.embedded()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def redis7():
    server = backings.redis7()
    if server is None:
        pytest.skip("Debian's redis-server is not installed")
    yield server
    server.stop()


def globals_of(lua: lupa.lua51.LuaRuntime, code: str) -> tuple[set[str], set[str]]:
    """Give the globals that compiled code reads, and those that it sets, as `luac -l` does."""
    dumped = lua.execute(_STRING_DUMP)(code).encode("latin-1")
    return Bytecode(dumped).globals()


class Bytecode:
    """Lua 5.1 bytecode, read far enough to know GETGLOBAL (5) and SETGLOBAL (7)."""

    def __init__(self, dumped: bytes) -> None:
        assert dumped[:5] == b"\x1bLuaQ"
        assert dumped[7:11] == bytes([4, 8, 4, 8]), "sizes of int, size_t, instruction, number"
        self._bytes = dumped
        self._at = 12
        self._read: set[str] = set()
        self._set: set[str] = set()

    def globals(self) -> tuple[set[str], set[str]]:
        self._function()
        assert self._at == len(self._bytes)
        return self._read, self._set

    def _function(self) -> None:
        self._string()
        self._at += 4 + 4 + 4
        code = [self._integer() for _ in range(self._integer())]
        constants = [self._constant() for _ in range(self._integer())]
        for instruction in code:
            operation, constant = instruction & 0x3F, instruction >> 14
            if operation in (5, 7):
                name = constants[constant]
                assert isinstance(name, str)
                (self._read if operation == 5 else self._set).add(name)
        for _ in range(self._integer()):
            self._function()
        lines = self._integer()
        self._at += 4 * lines
        for _ in range(self._integer()):
            self._string()
            self._at += 8
        for _ in range(self._integer()):
            self._string()

    def _integer(self, size: int = 4) -> int:
        self._at += size
        return int.from_bytes(self._bytes[self._at - size : self._at], "little")

    def _string(self) -> str:
        size = self._integer(8)
        self._at += size
        return self._bytes[self._at - size : self._at][:-1].decode("latin-1")

    def _constant(self) -> str | None:
        kind = self._integer(1)
        if kind == 4:
            return self._string()
        self._at += {0: 0, 1: 1, 3: 8}[kind]
        return None


def test_there_are_scripts():
    assert NAMES


@every_script
def test_the_header_names_every_index_that_the_code_uses(name):
    script = SCRIPTS.load(name)

    for used, said in (
        (script.used_keys, script.header.keys),
        (script.used_argv, script.header.argv),
    ):
        assert [index for index in used if not any(one.covers(index) for one in said)] == []


@every_script
def test_the_last_key_is_one_that_never_exists(name):
    keys = SCRIPTS.load(name).header.keys

    assert len(keys) >= 2 or keys[-1].last is None
    said = " ".join(keys[-1].text.split())
    assert said.startswith("none") or "last key never exists" in said


@every_script
def test_the_header_names_no_argument_that_nothing_reads(name):
    script = SCRIPTS.load(name)

    if re.search(r"\bARGV\b(?!\s*\[\s*\d)", script.code) is None:
        assert {one.first for one in script.header.argv} == script.used_argv


@every_script
def test_the_errors_of_the_header_are_those_of_the_code_and_known(name):
    script = SCRIPTS.load(name)

    assert set(script.header.errors) == script.used_errors
    assert set(script.header.errors) <= set(CODES)


@every_script
def test_every_error_reply_begins_with_a_code_and_says_more(name):
    # A lone word would come back with ERR before it from some servers.
    code = SCRIPTS.load(name).code
    replies = re.findall(r"error_reply\s*\(([^)]*)", code) + re.findall(r"\berr\s*=([^}]*)", code)

    assert [one for one in replies if not re.match(r"\s*['\"][A-Z_]{2,} ", one)] == []


@every_script
def test_a_script_calls_no_command_that_looks_past_its_keys(name):
    called = re.findall(r"['\"]([A-Z]+)['\"]", SCRIPTS.load(name).code)

    assert FORBIDDEN.intersection(called) == set()


@every_script
def test_a_script_compiles_and_names_no_global_of_its_own(lua, name):
    read, assigned = globals_of(lua, SCRIPTS.load(name).text_plain)

    assert assigned == set()
    assert read - GLOBALS == set()


@every_script
def test_a_reader_calls_no_command_that_writes(valkey, name):
    script = SCRIPTS.load(name)
    called = set(re.findall(r"call\s*\(\s*['\"]([A-Za-z]+)", script.code))
    writing = {one for one in called if b"write" in valkey.ask("COMMAND INFO", one)[0][2]}

    assert script.read_only == (writing == set())


@every_script
def test_valkey_takes_it_under_its_sha(valkey, name):
    script = SCRIPTS.load(name)

    assert valkey.ask("SCRIPT LOAD", script.text).decode() == script.sha


@pytest.mark.redis7
@every_script
def test_redis_7_takes_it_under_its_sha(redis7, name):
    script = SCRIPTS.load(name)

    assert redis7.ask("SCRIPT LOAD", script.text).decode() == script.sha


@every_script
def test_fakeredis_compiles_it(name):
    # It compiles when it runs. Without arguments some end early, but none fails to parse.
    client = fakeredis.FakeRedis()
    try:
        client.eval(SCRIPTS.load(name).text_plain, 2, "{1.0}:a", "{1.0}:none")
    except ResponseError as ex:
        assert "near" not in str(ex)  # noqa: PT017


@every_include
def test_an_include_defines_one_thing_named_as_its_file_under_a_comment(name):
    text = (FOLDER / "include" / f"{name}.lua").read_text()
    defined = re.findall(r"^local (?:function )?([a-z0-9_]+)", text, re.MULTILINE)

    assert text.startswith("-- ")
    assert defined == [name]


@every_include
def test_an_include_is_used(name):
    users = [one for one in NAMES if f"include/{name}" in SCRIPTS.load(one).includes]

    assert users != []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_asks_for_exactly_the_includes_that_it_names(file):
    text = file.read_text()
    asked = set(re.findall(r'@include "include/([a-z0-9_]+)"', text))
    code = strip_strings(strip_comments(text))
    named = {name for name in INCLUDES if re.search(rf"(?<![.\w]){name}\b", code)}
    own = {name for name in INCLUDES if re.search(rf"\blocal (function )?{name}\b", code)}

    assert asked == named - own


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_lines_have_at_most_100_columns_and_no_tabs_or_trailing_blanks(file):
    lines = file.read_text().split("\n")

    assert [n for n, line in enumerate(lines, 1) if len(line) > 100 or "\t" in line] == []
    assert [n for n, line in enumerate(lines, 1) if line != line.rstrip()] == []
    assert lines[-1] == ""


def test_the_check_for_globals_sees_them(lua):
    assert globals_of(lua, "local a = b; local function f() c = a; return redis.x end") == (
        {"b", "redis"},
        {"c"},
    )
