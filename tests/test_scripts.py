"""The loader and parser of scripts: what a file may look like, and what is said of others."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from service import scripts
from service.scripts import ScriptError, Scripts

HEADER = """\
--[[
Do a thing, and then
another one.

KEYS[1]    state     HASH  state of groups
KEYS[2]    none      never exists
ARGV[1]    group     integer  the group's number
ARGV[2..]  ids       mixed ids,
                     ascending
Computed   <tag>:m:<id>
Returns    string
Errors     INACTIVE  the group is inactive,
           which is seen here
           DELETED   the group is deleted
Cost       O(ids)
]]
"""
BODY = "return redis.call('HGET', KEYS[1], ARGV[1])\n"


def write(folder: Path, name: str, text: str) -> None:
    file = folder / f"{name}.lua"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)


def loaded(folder: Path, text: str) -> scripts.Script:
    write(folder, "do_it", text)
    return Scripts(folder).load("do_it")


def test_a_header_is_read_field_by_field(tmp_path):
    header = loaded(tmp_path, f"#!lua\n{HEADER}{BODY}").header

    assert header.purpose == "Do a thing, and then\nanother one."
    assert [(key.first, key.last) for key in header.keys] == [(1, 1), (2, 2)]
    assert [(key.first, key.last) for key in header.argv] == [(1, 1), (2, None)]
    assert header.argv[1].text == "ids       mixed ids,\nascending"
    assert header.argv[1].covers(7)
    assert not header.argv[0].covers(2)
    assert header.computed == "<tag>:m:<id>"
    assert header.returns == "string"
    assert header.cost == "O(ids)"
    assert header.errors == {
        "INACTIVE": "the group is inactive, which is seen here",
        "DELETED": "the group is deleted",
    }


@pytest.mark.parametrize(
    ("line", "read_only", "allow_oom"),
    [
        ("#!lua", False, False),
        ("#!lua flags=no-writes", True, False),
        ("#!lua flags=allow-oom", False, True),
        ("#!lua flags=no-writes,allow-oom", True, True),
    ],
)
def test_flags_come_from_the_first_line(tmp_path, line, read_only, allow_oom):
    script = loaded(tmp_path, f"{line}\n{HEADER}{BODY}")

    assert (script.read_only, script.allow_oom) == (read_only, allow_oom)
    assert script.text.startswith(f"{line}\n")
    assert script.text_plain == script.text.removeprefix(f"{line}\n")


def test_the_sha_is_that_of_the_text_a_server_gets(tmp_path):
    script = loaded(tmp_path, f"#!lua\n{HEADER}{BODY}")

    assert script.sha == hashlib.sha1(script.text.encode()).hexdigest()


def test_includes_are_expanded_once_each_and_what_they_need_stands_before_them(tmp_path):
    write(tmp_path, "include/a", "-- A.\nlocal function a() return 1 end\n")
    write(tmp_path, "include/b", '-- B.\n--- @include "include/a"\nlocal function b() end\n')
    write(tmp_path, "include/c", '--- @include "include/a"\n-- C.\nlocal function c() end\n')
    script = loaded(
        tmp_path,
        '#!lua\n--- @include "include/c"\n' + HEADER + '--- @include "include/b"\n' + BODY,
    )

    assert script.includes == ("include/a", "include/c", "include/b")
    assert script.text.count("local function a()") == 1
    positions = [script.text.index(f"local function {name}()") for name in "acb"]
    assert positions == sorted(positions)
    assert positions[-1] < script.text.index(BODY)
    assert "@include" not in script.text


def test_what_the_code_uses_is_found_in_includes_too_but_not_in_comments_or_strings(tmp_path):
    write(
        tmp_path,
        "include/a",
        "-- KEYS[8]\nlocal function a() return redis.error_reply('GONE ' .. ARGV[3]) end\n",
    )
    script = loaded(
        tmp_path,
        f'#!lua\n{HEADER}--- @include "include/a"\n'
        "local s = '-- no comment' -- KEYS[9] error_reply('NEVER x')\n"
        "--[[ KEYS[7]\nARGV[7] ]]\nif KEYS[1] == ARGV[ 2 ] then\n"
        "  return {err = 'TAKEN it is'}\nend\n",
    )

    assert script.used_keys == {1}
    assert script.used_argv == {2, 3}
    assert script.used_errors == {"GONE", "TAKEN"}
    assert "'-- no comment'" in script.code


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"do_it": '#!lua\n{H}\n--- @include "include/no"\n'},
            r"^do_it\.lua:19: .*include/no\.lua",
        ),
        (
            {
                "do_it": '#!lua\n--- @include "include/a"\n{H}',
                "include/a": '--- @include "include/b"\n',
                "include/b": '-- B.\n--- @include "include/a"\n',
            },
            r"^include/b\.lua:2: include/a includes itself",
        ),
        (
            {"do_it": '#!lua\n--- @include "include/a"\n{H}', "include/a": "#!lua\nlocal a\n"},
            r"^include/a\.lua:1: ",
        ),
        ({"do_it": "#!lua\n--- @include include/a\n{H}"}, r"^do_it\.lua:2: an include is"),
        ({"do_it": "return 1\n"}, r"^do_it\.lua:1: the first line"),
        ({"do_it": "#!lua flags=no-cluster\n{H}"}, r"^do_it\.lua:1: the first line"),
        ({"do_it": "#!lua\nreturn 1\n"}, r"^do_it\.lua:2: here the header begins"),
        ({"do_it": "#!lua\n--[[\nIt.\n\nCost  1\n"}, r"^do_it\.lua:2: the header does not end"),
        ({"do_it": "#!lua\n--[[\nIt.\n]]\n"}, r"^do_it\.lua:4: the header is a purpose"),
        (
            {"do_it": "#!lua\n--[[\nIt.\n\nwhat is this\n]]\n"},
            r"^do_it\.lua:5: neither a field",
        ),
        (
            {"do_it": "#!lua\n--[[\nIt.\n\nReturns  1\nKEYS[1]  a\n]]\n"},
            r"^do_it\.lua:6: the order of fields",
        ),
        (
            {"do_it": "#!lua\n--[[\nIt.\n\nKEYS[1]  a\nReturns  1\nReturns  2\n]]\n"},
            r"^do_it\.lua:7: the order of fields",
        ),
        (
            {"do_it": "#!lua\n--[[\nIt.\n\nKEYS[1]  a\nReturns  1\n]]\n"},
            r"^do_it\.lua:7: the header does not say Computed",
        ),
        (
            {"do_it": "{M}KEYS[1]  a\nKEYS[3]  c\n{T}"},
            r"^do_it\.lua:6: here KEYS\[2\] is missing",
        ),
        (
            {"do_it": "{M}KEYS[1]  a\nARGV[1..]  b\nARGV[2]  c\n{T}"},
            r"^do_it\.lua:7: ARGV\[2\] follows an open range",
        ),
        (
            {"do_it": "{M}KEYS[1]  a\nComputed\nReturns\nErrors  sometimes\nCost  1\n]]\n"},
            r"^do_it\.lua:.*Errors says none",
        ),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, files, message):
    head = "#!lua\n--[[\nIt.\n\n"
    tail = "Computed  none\nReturns  1\nErrors  none\nCost  1\n]]\n"
    for name, text in files.items():
        whole = text.replace("{H}", HEADER).replace("{M}", head).replace("{T}", tail)
        write(tmp_path, name, whole)

    with pytest.raises(ScriptError, match=message):
        Scripts(tmp_path).load("do_it")


def test_a_missing_script_is_an_error(tmp_path):
    with pytest.raises(ScriptError, match=r"^no\.lua:1: there is no no\.lua in "):
        Scripts(tmp_path).load("no")


def test_a_script_is_read_once(tmp_path):
    write(tmp_path, "do_it", f"#!lua\n{HEADER}{BODY}")
    folder = Scripts(tmp_path)

    assert folder.load("do_it") is folder.load("do_it")
    assert folder.names() == ["do_it"]


def test_belongs_own_scripts_are_found_without_naming_a_folder():
    assert scripts.load("add_members").name == "add_members"


def test_scripts_and_their_parser_know_no_server():
    source = Path(scripts.__file__).read_text()

    assert "import redis" not in source
    assert "from redis" not in source
