"""The commands `belong export` and `belong import`: their flags, bars and sentences.

They are added to the command line by `add_to`, which is given how a command gets its store.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click
import msgspec

from service.errors import NotFound, Unusable
from service.registry import PARTITIONS_MAX
from service.transfer.exporting import export_to_file, export_to_stream
from service.transfer.importing import Options, import_file, import_stream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from service.environment import Application
    from service.store import Store

    WithStore = Callable[[Callable[..., Awaitable[None]]], Callable[..., None]]

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def add_to(main: click.Group, with_store: WithStore) -> None:
    """Add the commands; `with_store` makes a callback of a coroutine that takes the store first."""

    @main.command("export")
    @click.option(
        "--application",
        "applications",
        metavar="CLIENT_ID",
        multiple=True,
        required=True,
        help="What to export; may be repeated; `all` for all applications.",
    )
    @click.option(
        "--output",
        metavar="FILE",
        type=click.Path(allow_dash=True),
        required=True,
        help="The file, or - for standard output. A file is gone on with after a kill.",
    )
    @_json
    @with_store
    async def export_(
        store: Store, *, applications: tuple[str, ...], output: str, as_json: bool
    ) -> None:
        """Write applications with all that they hold to a file."""
        chosen = await _chosen(store, applications)
        with _said(output), _bar("export") as progress:
            if output == "-":
                with _standard_output() as stream:
                    written = await export_to_stream(store, chosen, stream, progress)
            else:
                written = await export_to_file(store, chosen, Path(output), progress)
        _summary(written, as_json=as_json, err=output == "-")

    @main.command("import")
    @click.argument("file", type=click.Path(allow_dash=True))
    @click.option(
        "--application",
        metavar="CLIENT_ID",
        help="Import the one application of the file under this client id.",
    )
    @click.option(
        "--partitions",
        type=click.IntRange(1, PARTITIONS_MAX),
        help="Of an application that is created. Default: as in the file.",
    )
    @click.option(
        "--merge",
        is_flag=True,
        help="Into an application that is not empty, too. What is there stays.",
    )
    @_json
    @with_store
    async def import_(
        store: Store,
        *,
        file: str,
        application: str | None,
        partitions: int | None,
        merge: bool,
        as_json: bool,
    ) -> None:
        """Read applications with all that they hold from FILE, or from -."""
        options = Options(application=application, partitions=partitions, merge=merge)

        def report(sentence: str) -> None:
            click.echo(sentence, err=True)

        with _said(file), _bar("import") as progress:
            if file == "-":
                stream = sys.stdin.buffer
                read = await import_stream(store, stream, options, report)
            else:
                read = await import_file(store, Path(file), options, progress, report)
        _summary(read, as_json=as_json)
        if read.conflicts:
            raise click.exceptions.Exit(1)


async def _chosen(store: Store, client_ids: tuple[str, ...]) -> list[Application]:
    if "all" in client_ids:
        return await store.registry.list_applications()
    chosen = []
    for client_id in dict.fromkeys(client_ids):
        found = await store.registry.application(client_id)
        if found is None:
            raise NotFound(f"no application {client_id}")
        chosen.append(found)
    return chosen


@contextlib.contextmanager
def _said(name: str) -> Iterator[None]:
    """Say in a sentence what the operating system did not do."""
    try:
        yield
    except BrokenPipeError:
        raise Unusable("Nobody reads the output any more.") from None
    except OSError as error:
        where = error.filename or name
        raise Unusable(f"{where}: {error.strerror or error}") from None


@contextlib.contextmanager
def _standard_output() -> Iterator[IO[bytes]]:
    stream = sys.stdout.buffer
    try:
        yield stream
    except OSError:
        # What could not be written would be tried again at exit, and complained about.
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)
        raise


@contextlib.contextmanager
def _bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr, where somebody watches."""
    with click.progressbar(
        length=1, label=label, file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as bar:

        def advance(done: int, total: int) -> None:
            bar.finished = False
            bar.length = max(total, done, 1)
            bar.update(done - bar.pos)

        yield advance


def _summary(counts: msgspec.Struct, *, as_json: bool, err: bool = False) -> None:
    shown: dict[str, Any] = msgspec.structs.asdict(counts)
    if as_json:
        click.echo(msgspec.json.encode(shown), err=err)
    else:
        click.echo(", ".join(f"{number:,} {kind}" for kind, number in shown.items()), err=err)
