"""`python -m bench`, or `make bench`: measures, and writes what came of it."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from bench import results, runner, serving, tables
from bench.runner import Settings

SMOKE = Settings(runs=1, seconds=0.1, connections=8, peers=False, smoke=True)


@click.command()
@click.option("--only", multiple=True, metavar="NAME", help="A module or a workload; repeatable.")
@click.option("--runs", default=3, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=4.0, show_default=True, help="Of each sample of a loop.")
@click.option("--connections", default=32, show_default=True, type=click.IntRange(1))
@click.option("--peers/--no-peers", default=True, show_default=True)
@click.option("--large", is_flag=True, help="Groups of 10,000,000, too.")
@click.option("--smoke", is_flag=True, help="Everything once and tiny, no peers: does it work?")
@click.option(
    "--out",
    default=Path(results.RESULTS),
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Gets a folder with JSON, table and pictures.",
)
@click.option("--against", metavar="REF", help="Beside another commit, and not the peers.")
@click.option(
    "--again",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Measure nothing: make table and pictures of an earlier results.json.",
)
def main(
    only: tuple[str, ...],
    runs: int,
    seconds: float,
    connections: int,
    peers: bool,
    large: bool,
    smoke: bool,
    out: Path,
    against: str | None,
    again: Path | None,
) -> None:
    """Measure Belong, beside what people would use instead.

    Exits with 1 where anything went wrong: a step that failed, an answer that was an error.
    """
    if again is not None:
        results.show(results.read(again), again.parent)
        return
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.default_int_handler)
    settings = Settings(only, runs, seconds, connections, peers, large)
    if smoke:
        settings = SMOKE._replace(only=only)
        serving.leave_unpinned()
    settings = settings._replace(against=against or "")
    about = results.about()
    if about.machine.was_busy:
        said = f"a load average of {about.machine.load_before[0]} before the start"
        click.echo(f"the machine is busy, others are measured, too: {said}", err=True)
    try:
        done = results.finished(about, runner.run(settings))
    except KeyboardInterrupt:
        raise SystemExit("interrupted before anything was measured") from None
    folder = results.write(done, out)
    click.echo(folder.joinpath("README.md").read_text())
    click.echo(f"stolen meanwhile: {tables.stolen(done.machine)}", err=True)
    click.echo(f"written to {folder}", err=True)
    if done.errors:
        raise SystemExit(f"{done.errors:,} errors, of which {len(done.failures)} failed steps")


if __name__ == "__main__":
    main()
