"""The Lua scripts: finding, expanding and reading them.

Owns the grammar of a script file: its first line, its header, its includes. `load("add_members")`
gives the script that `lua/add_members.lua` holds, with every include expanded once, in the order
of dependency. Knows no server: `connection.py` sends the text and names it by its SHA.

A script begins with `#!lua`, perhaps with flags; perhaps includes; then its header, a comment in
long brackets: the purpose, an empty line, and fields that start in the first column, in this order
and only the first two more than once: KEYS[..], ARGV[..], Computed, Returns, Errors, Cost. Lines
that are indented continue a field.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

SHEBANG = "#!lua"
FLAGS = frozenset({"no-writes", "allow-oom"})

_INCLUDE = re.compile(r'--- @include "(include/[a-z0-9_]+)"')
_COMMENT = re.compile(r"--\[\[.*?\]\]|--[^\n]*", re.DOTALL)
_LITERAL = re.compile(r"'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\"")
_FIELD = re.compile(r"(KEYS|ARGV)\[(\d+|\d+\.\.|\.\.)\]|(Computed|Returns|Errors|Cost)(?=\s|$)")
_ORDER = ("KEYS", "ARGV", "Computed", "Returns", "Errors", "Cost")
_CODE = re.compile(r"[A-Z][A-Z_]+(?= {2}|$)")
_USE = re.compile(r"\b(KEYS|ARGV)\s*\[\s*(\d+)\s*\]")
_ERROR = re.compile(r"\berror_reply\s*\(\s*['\"]([A-Z_]+)\b|\berr\s*=\s*['\"]([A-Z_]+)\b")


class ScriptError(ValueError):
    """A script file that breaks the grammar. The message begins with the file and the line."""

    def __init__(self, file: str, line: int, message: str) -> None:
        """Say where, then what."""
        super().__init__(f"{file}.lua:{line}: {message}")


@dataclass(frozen=True, slots=True)
class Argument:
    """One KEYS or ARGV field: the indexes first to last (None: to the end), and what it says."""

    first: int
    last: int | None
    text: str

    def covers(self, index: int) -> bool:
        """Say whether the field speaks of this index."""
        return self.first <= index and (self.last is None or index <= self.last)


@dataclass(frozen=True, slots=True)
class Header:
    """What a script promises. `errors` are codes, first words of its error replies."""

    purpose: str
    keys: tuple[Argument, ...]
    argv: tuple[Argument, ...]
    computed: str
    returns: str
    errors: dict[str, str]
    cost: str


@dataclass(frozen=True, slots=True)
class Script:
    """One operation: `text` is what a server gets and `sha` its name there.

    `code` is the expanded text without comments: what the header is held against.
    """

    name: str
    text: str
    sha: str
    header: Header
    flags: frozenset[str]
    includes: tuple[str, ...]

    @property
    def read_only(self) -> bool:
        """It writes nothing, and the server holds it to that."""
        return "no-writes" in self.flags

    @property
    def allow_oom(self) -> bool:
        """It runs on a full store too."""
        return "allow-oom" in self.flags

    @property
    def text_plain(self) -> str:
        """Give the text without its first line, for interpreters that do not know it."""
        return plain(self.text)

    @property
    def code(self) -> str:
        """Give the text without its first line and without comments."""
        return strip_comments(self.text_plain)

    @property
    def used_keys(self) -> frozenset[int]:
        """Give the indexes that stand in the code as `KEYS[n]`."""
        return self._used("KEYS")

    @property
    def used_argv(self) -> frozenset[int]:
        """Give the indexes that stand in the code as `ARGV[n]`."""
        return self._used("ARGV")

    @property
    def used_errors(self) -> frozenset[str]:
        """Give the codes of the error replies in the code, those of the includes too."""
        return frozenset(match[1] or match[2] for match in _ERROR.finditer(self.code))

    def _used(self, table: str) -> frozenset[int]:
        return frozenset(int(m[2]) for m in _USE.finditer(self.code) if m[1] == table)


class Scripts:
    """The scripts of a folder, each read once. Without one: those of the package or checkout."""

    def __init__(self, folder: Traversable | None = None) -> None:
        """Take the folder that holds the scripts, and their includes in `include/`."""
        self.folder = _lua() if folder is None else folder
        self._read: dict[str, Script] = {}

    def load(self, name: str) -> Script:
        """Give a script by its name. Raises ScriptError."""
        script = self._read.get(name)
        if script is None:
            script = self._read[name] = self._parse(name)
        return script

    def names(self) -> list[str]:
        """Give the name of every script of the folder, in order."""
        return sorted(
            file.name.removesuffix(".lua")
            for file in self.folder.iterdir()
            if file.name.endswith(".lua")
        )

    def _parse(self, name: str) -> Script:
        text = self._text(name, name, 1)
        lines = text.split("\n")
        flags = _flags(name, lines[0])
        header = _header(name, lines)
        expanded: dict[str, str] = {}
        body = self._expand(name, text, expanded, ())
        first, _, rest = body.partition("\n")
        whole = "\n".join([first, *expanded.values(), rest])
        sha = hashlib.sha1(whole.encode(), usedforsecurity=False).hexdigest()
        return Script(name, whole, sha, header, flags, tuple(expanded))

    def _text(self, name: str, asker: str, line: int) -> str:
        try:
            return self.folder.joinpath(f"{name}.lua").read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ScriptError(asker, line, f"there is no {name}.lua in {self.folder}") from None

    def _expand(
        self, name: str, text: str, expanded: dict[str, str], above: tuple[str, ...]
    ) -> str:
        """Read what `text` includes into `expanded`, depth first; give the text without it."""
        kept = []
        for number, line in enumerate(text.split("\n"), start=1):
            if "@include" not in line:
                kept.append(line)
                continue
            match = _INCLUDE.fullmatch(line)
            if match is None:
                raise ScriptError(name, number, 'an include is a line --- @include "include/name"')
            wanted = match[1]
            if wanted in (*above, name):
                raise ScriptError(name, number, f"{wanted} includes itself in the end")
            if wanted not in expanded:
                included = self._text(wanted, name, number)
                if included.startswith("#!"):
                    raise ScriptError(wanted, 1, "an include has no first line of its own")
                included = self._expand(wanted, included, expanded, (*above, name))
                expanded[wanted] = included.rstrip("\n")
        return "\n".join(kept)


def load(name: str) -> Script:
    """Give one of Belong's own scripts by its name."""
    return _own().load(name)


def plain(text: str) -> str:
    """Give a script's text without its first line."""
    return text.partition("\n")[2] if text.startswith(SHEBANG) else text


def strip_comments(code: str) -> str:
    """Give Lua code without its comments; strings that hold `--` stay whole."""
    either = re.compile(f"({_LITERAL.pattern})|({_COMMENT.pattern})", re.DOTALL)
    return either.sub(lambda match: match[1] or "", code)


def strip_strings(code: str) -> str:
    """Give Lua code with every string literal emptied."""
    return _LITERAL.sub("''", code)


@cache
def _own() -> Scripts:
    return Scripts()


def _lua() -> Traversable:
    packaged = files("service") / "lua"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "lua"


def _flags(name: str, line: str) -> frozenset[str]:
    """Read the first line: `#!lua`, or `#!lua flags=` and flags between commas."""
    if line == SHEBANG:
        return frozenset()
    flags = frozenset(line.removeprefix(f"{SHEBANG} flags=").split(","))
    if not line.startswith(f"{SHEBANG} flags=") or not flags <= FLAGS:
        known = " or ".join(sorted(FLAGS))
        raise ScriptError(name, 1, f"the first line is {SHEBANG}, perhaps with flags={known}")
    return flags


def _header(name: str, lines: list[str]) -> Header:
    """Read the comment that follows the first line and perhaps includes."""
    start = 1
    while start < len(lines) and ("@include" in lines[start] or not lines[start].strip()):
        start += 1
    if start == len(lines) or lines[start] != "--[[":
        raise ScriptError(name, start + 1, "here the header begins, with a line --[[")
    if "]]" not in lines[start:]:
        raise ScriptError(name, start + 1, "the header does not end with a line ]]")
    end = lines.index("]]", start)
    blank = next((n for n in range(start, end) if not lines[n].strip()), end)
    if blank in (start + 1, end):
        raise ScriptError(name, blank + 1, "the header is a purpose, an empty line, and fields")
    fields = _fields(name, lines, blank + 1, end)
    said = {kind: text for kind, _, text, _ in fields}
    for kind in ("KEYS", "Computed", "Returns", "Errors", "Cost"):
        if kind not in said:
            raise ScriptError(name, end + 1, f"the header does not say {kind}")
    return Header(
        purpose="\n".join(lines[start + 1 : blank]),
        keys=_arguments(name, fields, "KEYS"),
        argv=_arguments(name, fields, "ARGV"),
        computed=said["Computed"],
        returns=said["Returns"],
        errors=_codes(name, end, said["Errors"]),
        cost=said["Cost"],
    )


def _fields(name: str, lines: list[str], start: int, end: int) -> list[tuple[str, str, str, int]]:
    """Give (kind, indexes, text, line) of every field, continuation lines joined."""
    fields: list[tuple[str, str, str, int]] = []
    for number in range(start, end):
        line = lines[number]
        match = _FIELD.match(line)
        if match is None:
            if not fields or not line.startswith(" "):
                raise ScriptError(name, number + 1, "neither a field nor an indented line of one")
            kind, indexes, text, first = fields[-1]
            fields[-1] = (kind, indexes, f"{text}\n{line.strip()}", first)
            continue
        kind = match[1] or match[3]
        before = fields[-1][0] if fields else kind
        repeated = kind == before and fields and match[1] is None
        if repeated or _ORDER.index(kind) < _ORDER.index(before):
            raise ScriptError(name, number + 1, f"the order of fields is {' '.join(_ORDER)}")
        text = line[match.end() :].strip()
        fields.append((kind, match[2] or "", text, number + 1))
    return fields


def _arguments(
    name: str, fields: list[tuple[str, str, str, int]], table: str
) -> tuple[Argument, ...]:
    """Read the indexes of one table, which must follow each other without a gap."""
    arguments: list[Argument] = []
    for kind, indexes, text, line in fields:
        if kind != table:
            continue
        next_index = len(arguments) + 1
        if arguments and arguments[-1].last is None:
            # After an open range only the position from the end can be said: KEYS[..], the last.
            if indexes != "..":
                raise ScriptError(name, line, f"{table}[{indexes}] follows an open range")
            arguments.append(Argument(next_index, None, text))
            continue
        first = next_index if indexes == ".." else int(indexes.removesuffix(".."))
        if first != next_index:
            raise ScriptError(name, line, f"here {table}[{next_index}] is missing")
        arguments.append(Argument(first, None if indexes.endswith("..") else first, text))
    return tuple(arguments)


def _codes(name: str, end: int, text: str) -> dict[str, str]:
    """Read `CODE  when`, one a line; lines that begin otherwise continue the one before."""
    codes: dict[str, str] = {}
    if text == "none":
        return codes
    last = ""
    for line in text.split("\n"):
        match = _CODE.match(line)
        if match is not None:
            last = match[0]
            codes[last] = line[match.end() :].strip()
        elif last:
            codes[last] += f" {line}"
        else:
            raise ScriptError(name, end + 1, "Errors says none, or a CODE and two spaces a line")
    return codes
