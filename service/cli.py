"""The command line `belong`: what it is called with and what it prints. The work is elsewhere.

Results go to stdout, logs and progress to stderr. A failure that has a sentence is one line
`belong: …` and exit 1; wrong usage is exit 2. Commands other than `serve` use the store of
`--redis-url`, or else find the embedded one that `belong serve` runs on the data directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import sys
from typing import TYPE_CHECKING, Any, Unpack, cast

import click
import msgspec

from service import (
    __version__,
    auth,
    cli_recompute,
    cli_transfer,
    config,
    embedded,
    ids,
    server,
    signing,
    verify,
)
from service.errors import BelongError, NotFound, Unusable
from service.registry import SCOPES
from service.store import Store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from service.config import Config
    from service.environment import Application, Settings, SigningSecret
    from service.registry import Credential
    from service.verify import Report

_SHARED = ("data_dir", "redis_url", "log_level")

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
_client_id = click.argument("client_id", metavar="CLIENT_ID")
_applications = click.option(
    "--application",
    "applications",
    metavar="CLIENT_ID",
    multiple=True,
    required=True,
    help="An application that it is for; may be repeated.",
)
_profiles = click.option(
    "--profiles",
    type=click.Choice(["open", "registered"]),
    help="Whether any profile may be added to groups, or only known ones. Default: open.",
)


_NO_LIMIT = "none"


class _Limit(click.ParamType[int | str]):
    """A number, or `none`."""

    name = "limit"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002 - click names them
        """Show what may be given."""
        return f"N|{_NO_LIMIT}"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """Read it; the registry says which numbers may be."""
        if value == _NO_LIMIT:
            return _NO_LIMIT
        return click.INT.convert(value, param, ctx)


class _Belong(click.Group):
    """The commands; a failure with a sentence ends them with that sentence."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except BelongError as error:
            click.echo(f"belong: {' '.join(str(error).split())}", err=True)
            ctx.exit(1)


def _with_store(command: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Make a click callback of a coroutine that takes the open store first."""

    @config.options(*_SHARED)
    @functools.wraps(command)
    def run(**parameters: Any) -> None:
        settings = _settings({name: parameters.pop(name) for name in _SHARED})
        _run(settings, functools.partial(command, **parameters))

    return run


def _run(settings: Config, command: Callable[[Store], Awaitable[None]]) -> None:
    """Open the store, run the command on it, close the store."""

    async def with_store() -> None:
        store = await Store.open(_url(settings))
        try:
            await command(store)
        finally:
            await store.close()

    asyncio.run(with_store())


def _settings(flags: dict[str, str | None]) -> Config:
    settings = config.load(flags)
    server.configure_logging(settings.log_level)
    return settings


def _url(settings: Config) -> str:
    url = settings.redis_url or embedded.find(settings.data_dir)
    if url is None:
        raise Unusable(
            f"No store runs on {settings.data_dir.absolute()}: run belong serve, or give the "
            f"--data-dir that it has, or a --redis-url."
        )
    return url


@click.group(cls=_Belong, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="belong")
def main() -> None:
    """Belong: which profiles are in which groups."""


@main.command()
def version() -> None:
    """Print the version."""
    click.echo(__version__)


@main.command()
@click.option("--demo", is_flag=True, help="Make a demo application and print calls to try.")
@config.options()
def serve(*, demo: bool, **flags: str | None) -> None:
    """Run the API, its worker and, without --redis-url, the store."""
    server.serve(_settings(flags), demo=demo)


@main.command()
@config.options(*_SHARED)
def worker(**flags: str | None) -> None:
    """Run one more background worker (serve runs one)."""
    server.work(_url(_settings(flags)))


# --- applications


@main.group()
def app() -> None:
    """Applications: tenants with groups and profiles of their own."""


@app.command("create")
@_client_id
@click.option("--workspace", type=click.IntRange(min=1), help="Default: the next free one.")
@click.option("--name", help="Default: the client id.")
@click.option(
    "--partitions",
    type=int,
    default=1,
    show_default=True,
    help="For good. 8 to 64 for a tenant that will outgrow one machine.",
)
@_profiles
@_json
@_with_store
async def app_create(
    store: Store,
    client_id: str,
    *,
    workspace: int | None,
    name: str | None,
    partitions: int,
    profiles: str | None,
    as_json: bool,
) -> None:
    """Create an application."""
    created = await store.registry.create_application(
        client_id,
        workspace_id=workspace,
        name=name,
        partitions=partitions,
        profiles=profiles or "open",
    )
    _print(_application(created), as_json=as_json)


@app.command("update")
@_client_id
@click.option("--name", help="A new name.")
@_profiles
@click.option("--groups-per-profile", type=int, help="Limit of static groups of one profile.")
@click.option(
    "--anonymous-profiles",
    type=bool,
    metavar="on|off",
    help="Whether anybody may create a profile without a token. Default: on.",
)
@click.option(
    "--anonymous-per-minute", type=int, help="How many profiles in a minute. Default: 6000."
)
@click.option(
    "--requests-per-second",
    type=_Limit(),
    help="Limit of each credential, and of each profile's token. Default: none.",
)
@click.option(
    "--grouping",
    type=click.Choice(["realtime", "weekly"]),
    help="When users become groups: at once, or on Mondays (00:00 UTC). Default: realtime.",
)
@click.option("--definitions-per-workspace", type=int, help="1 to 100. Default: 1.")
@click.option("--attributes-per-definition", type=int, help="1 to 100. Default: 10.")
@click.option("--users-per-group", type=int, help="1 to 1000: those who came first. Default: 10.")
@click.option("--dynamic-groups", type=int, help="1 to 5000: that follow rules. Default: 1000.")
@_json
@_with_store
async def app_update(
    store: Store, client_id: str, *, as_json: bool, **given: Unpack[Settings]
) -> None:
    """Change settings of an application: those that are given."""
    settings = {name: value for name, value in given.items() if value is not None}
    if not settings:
        raise click.UsageError("Nothing is to be changed: give a setting.")
    if settings.get("requests_per_second") == _NO_LIMIT:
        settings["requests_per_second"] = None
    updated = await store.registry.update_application(client_id, **cast("Settings", settings))
    await store.definitions.follow_settings(client_id)
    _print(_application(updated), as_json=as_json)


@app.command("list")
@_json
@_with_store
async def app_list(store: Store, *, as_json: bool) -> None:
    """List all applications."""
    found = await store.registry.list_applications()
    _print([_application(each) for each in found], as_json=as_json)


@app.command("show")
@_client_id
@_json
@_with_store
async def app_show(store: Store, client_id: str, *, as_json: bool) -> None:
    """Show one application."""
    _print(_application(await _find(store, client_id)), as_json=as_json)


@app.command("delete")
@_client_id
@click.confirmation_option(prompt="Delete this application?")
@_with_store
async def app_delete(store: Store, client_id: str) -> None:
    """Delete an application that has no groups and no profiles."""
    await store.registry.delete_application(client_id)


# --- credentials, tokens, keys


@main.group()
def credential() -> None:
    """Credentials: an id and a secret that get tokens at /oauth/token."""


@credential.command("create")
@_applications
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(SCOPES),
    multiple=True,
    required=True,
    help="What its tokens may do; may be repeated.",
)
@_json
@_with_store
async def credential_create(
    store: Store, applications: tuple[str, ...], scopes: tuple[str, ...], *, as_json: bool
) -> None:
    """Create a credential. Its secret is printed this once and kept nowhere."""
    created, secret = await store.registry.create_credential(list(applications), list(scopes))
    shown = {
        "client_id": created.id,
        "client_secret": secret,
        "scopes": list(created.scopes),
        "applications": list(created.applications),
    }
    _print(shown, as_json=as_json)


@credential.command("list")
@_json
@_with_store
async def credential_list(store: Store, *, as_json: bool) -> None:
    """List all credentials, without their secrets."""
    found = await store.registry.list_credentials()
    _print([_credential(each) for each in found], as_json=as_json)


@credential.command("deactivate")
@click.argument("credential_id", metavar="ID")
@_with_store
async def credential_deactivate(store: Store, credential_id: str) -> None:
    """End a credential and its tokens, within 30 seconds."""
    await store.registry.deactivate_credential(credential_id)


@main.command()
@_applications
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(SCOPES),
    multiple=True,
    help="What the token may do; may be repeated. Default: admin.",
)
@click.option(
    "--profile",
    metavar="ID",
    help="Make it the token of this profile (UUID or custom id), which does not expire.",
)
@_with_store
async def token(
    store: Store, applications: tuple[str, ...], scopes: tuple[str, ...], profile: str | None
) -> None:
    """Print a token that is good for 8 hours, and nothing else."""
    found = [await _find(store, client_id) for client_id in applications]
    if profile is None:
        minted = await auth.mint(
            store.registry,
            applications=applications,
            scopes=scopes or ["admin"],
            subject="belong token",
        )
    elif scopes or len(found) != 1:
        raise click.UsageError("The token of a profile is for one application and has no scopes.")
    else:
        minted = await _profile_token(store, found[0], profile)
    click.echo(minted)


async def _profile_token(store: Store, application: Application, profile: str) -> str:
    """Mint the token of a profile that has a record: one that is nowhere known gets none."""
    environment = application.production
    id16 = ids.parse(profile)
    if id16 is None:
        [id16] = await store.profiles.resolve_identities(
            environment, "customer_id", [profile], create=False
        )
    created_at_us = None
    if id16 is not None:
        with contextlib.suppress(NotFound):
            created_at_us = (await store.records.get_profile(environment, id16)).created_at_us
    if id16 is None or created_at_us is None:
        raise NotFound(
            f"{application.client_id} has no profile {profile!r} with a record: create one with "
            "POST profile/, or add it by custom id to a group"
        )
    return signing.profile_token(application, id16, created_at_us)


# --- signing secrets


@main.group()
def secret() -> None:
    """Signing secrets: an application's own back end signs tokens of profiles with them."""


@secret.command("create")
@click.option("--application", "client_id", metavar="CLIENT_ID", required=True)
@click.option(
    "--secret-stdin", is_flag=True, help="Take a secret that you have already, from stdin."
)
@_json
@config.options(*_SHARED, "secret_key")
def secret_create(
    client_id: str, *, secret_stdin: bool, as_json: bool, **flags: str | None
) -> None:
    """Create a signing secret. It is printed this once, kept encrypted, and counts in a second."""
    settings = _settings(flags)
    brought = sys.stdin.read().rstrip("\r\n") if secret_stdin else None

    async def create(store: Store) -> None:
        seal = signing.Seal(signing.secret_key(settings))
        made, text = await signing.create_secret(store.registry, seal, client_id, brought)
        shown = {"secret": text} if brought is None else {}
        _print(_secret(client_id, made) | shown, as_json=as_json)

    _run(settings, create)


@secret.command("list")
@_json
@_with_store
async def secret_list(store: Store, *, as_json: bool) -> None:
    """List all signing secrets, without what is secret."""
    found = await signing.list_secrets(store.registry)
    _print([_secret(each.client_id, one) for each, one in found], as_json=as_json)


@secret.command("delete")
@click.argument("secret_id", metavar="ID")
@_with_store
async def secret_delete(store: Store, secret_id: str) -> None:
    """Delete a signing secret: tokens that it signed end within seconds."""
    await signing.delete_secret(store.registry, secret_id)


@main.group()
def key() -> None:
    """Keys that sign tokens."""


@key.command("rotate")
@_json
@_with_store
async def key_rotate(store: Store, *, as_json: bool) -> None:
    """Publish a new key. It signs in a minute; tokens of the old one stay good until they end."""
    made = await store.registry.rotate_keys()
    _print({"kid": made.kid, "signs_from": _time(made.not_before_us)}, as_json=as_json)


# --- checks


@main.command("verify")
@_json
@_with_store
async def verify_command(store: Store, *, as_json: bool) -> None:
    """Check the whole store for contradictions. Exit 1 if there are any."""
    _finish(await _with_progress("verify", verify.verify, store), as_json=as_json)


@main.command("repair")
@_json
@_with_store
async def repair_command(store: Store, *, as_json: bool) -> None:
    """Mend what verify finds, and say what was done. Exit 1 if something is left."""
    report = await _with_progress("repair", verify.repair, store)
    _finish(report, as_json=as_json, repaired=True)


async def _with_progress(
    label: str,
    run: Callable[[Store, Callable[[int, int], None]], Awaitable[Report]],
    store: Store,
) -> Report:
    """Run it with a bar on stderr, where somebody watches."""
    with click.progressbar(
        length=1, label=label, file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as bar:

        def advance(done: int, total: int) -> None:
            # The total is an estimate, and repair may look again from the start.
            bar.finished = False
            bar.length = max(total, done, 1)
            bar.update(done - bar.pos)

        return await run(store, advance)


def _finish(report: Report, *, as_json: bool, repaired: bool = False) -> None:
    for line in report.behind:
        click.echo(f"not everything derived was looked for: {line}", err=True)
    if as_json:
        shown = {"ok": report.ok, "checked": report.checked, "problems": report.problems}
        _print(shown | ({"mended": report.mended} if repaired else {}), as_json=True)
    else:
        for line in [*report.mended, *report.problems]:
            click.echo(line)
        mended = f"{len(report.mended)} mended, " if repaired else ""
        click.echo(f"{report.checked} keys checked, {mended}{len(report.problems)} problems")
    if not report.ok:
        raise click.exceptions.Exit(1)


cli_recompute.add_to(main, _with_store)
cli_transfer.add_to(main, _with_store)


# --- output


async def _find(store: Store, client_id: str) -> Application:
    found = await store.registry.application(client_id)
    if found is None:
        raise NotFound(f"no application {client_id}")
    return found


def _application(application: Application) -> dict[str, Any]:
    return {
        "client_id": application.client_id,
        "workspace_id": application.workspace_id,
        "name": application.name,
        "partitions": len(application.production.partitions),
        "profiles": application.profiles,
        "groups_per_profile": application.groups_per_profile,
        "anonymous_profiles": application.anonymous_profiles,
        "anonymous_per_minute": application.anonymous_per_minute,
        "requests_per_second": application.requests_per_second,
        "grouping": application.grouping,
        "definitions_per_workspace": application.definitions_per_workspace,
        "attributes_per_definition": application.attributes_per_definition,
        "users_per_group": application.users_per_group,
        "dynamic_groups": application.dynamic_groups,
        "created_at": _time(application.created_at_us),
    }


def _credential(found: Credential) -> dict[str, Any]:
    return {
        "client_id": found.id,
        "active": found.active,
        "scopes": list(found.scopes),
        "applications": list(found.applications),
        "created_at": _time(found.created_at_us),
    }


def _secret(client_id: str, found: SigningSecret) -> dict[str, Any]:
    return {
        "id": found.id,
        "application": client_id,
        "created_at": _time(found.created_at_us),
    }


def _time(time_us: int) -> str:
    whole = dt.datetime.fromtimestamp(time_us // 1_000_000, dt.UTC)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{time_us % 1_000_000:06}Z"


def _print(found: dict[str, Any] | list[dict[str, Any]], *, as_json: bool) -> None:
    """Print an object as lines `name  value`, or a list as a table; or either as JSON."""
    if as_json:
        click.echo(msgspec.json.encode(found))
    elif isinstance(found, dict):
        _table([[name, _cell(value)] for name, value in found.items()])
    elif found:
        _table([list(found[0]), *([_cell(value) for value in row.values()] for row in found)])


def _cell(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else str(value)


def _table(rows: Iterable[list[str]]) -> None:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
