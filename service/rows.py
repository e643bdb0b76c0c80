"""Rows: arguments of scripts that belong together, and how many of them one script takes.

A row begins with a mixed id, or an instance, and ends with bytes.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from service import keys, scripts
from service.errors import Unavailable
from service.store_group_directory import all_done

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Iterator, Sequence

    from service.connection import Connection
    from service.environment import Environment

    Part = bytes | str | int
    Row = tuple[Any, ...]

_T = TypeVar("_T")

WRITE_BYTES = 262_144
"""Bytes that one script writes."""


async def all_done_of(*calls: Awaitable[_T]) -> list[_T]:
    """Wait for all, as `all_done` does; one alone does without a task."""
    return [await calls[0]] if len(calls) == 1 else await all_done(*calls)


def in_steps(parts: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    """Cut a sequence into pieces of a size."""
    for start in range(0, len(parts), size):
        yield parts[start : start + size]


def by_home(env: Environment, rows: Iterable[Row], many: int) -> Iterator[tuple[bytes, list[Row]]]:
    """Cut rows into what one script takes, by the home of what each begins with."""
    homes: dict[bytes, list[Row]] = {}
    if len(env.partitions) == 1:
        # PERF: there are several rows for each profile; it is a tenth of what deriving costs here.
        homes[env.partitions[0]] = list(rows)
    else:
        for row in rows:
            homes.setdefault(env.home(row[0]), []).append(row)
    for tag, within in homes.items():
        if not within:
            continue
        start = size = 0
        for at, row in enumerate(within):
            if at - start >= many or size >= WRITE_BYTES:
                yield tag, within[start:at]
                start, size = at, 0
            size += len(row[-1])
        yield tag, within[start:]


async def run_rows(
    connection: Connection,
    name: str,
    kinds: Sequence[str],
    head: Sequence[Part],
    chunks: Iterable[tuple[bytes, list[Row]]],
    *,
    bulk: bool,
) -> list[tuple[list[Row], Any]]:
    """Run a script for each chunk of rows, side by side; give each with its answer.

    `kinds` are those of the keys that the script is given, `head` what it is told before the rows.
    """
    script = scripts.load(name)

    async def run(tag: bytes, chunk: list[Row]) -> tuple[list[Row], Any]:
        declared = [keys.key(tag, kind) for kind in kinds]
        declared.append(keys.none(tag))
        arguments: list[Part] = [*head, *chain.from_iterable(chunk)]
        return chunk, await connection.call(script, declared, arguments, bulk=bulk)

    return await all_done_of(*(run(tag, chunk) for tag, chunk in chunks))


def restless() -> Unavailable:
    """Give what is raised where rules change faster than they can be followed."""
    return Unavailable("the rules of the application are being changed by too many others at once")
