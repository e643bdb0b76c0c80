"""The settings of a server: what they are called, what they mean, where they come from.

A setting is a field of `Config`. Its flag, its `BELONG_*` variable and its row in the README are
made from the field. This is the only module that reads the environment, except that `faults` looks
for its own variable.
"""

from __future__ import annotations

import ipaddress
import os
import tempfile
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import click
import msgspec
from msgspec import Meta

from service.errors import Unusable

PREFIX = "BELONG_"
NO_SETTINGS = frozenset({"BELONG_FAULT"})
"""Variables with our prefix that belong to somebody else: `faults` reads this one."""

_MASK = "***"

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _cores() -> int:
    """Count the cores that this process may use (containers and `taskset` give fewer)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # pragma: no cover - macOS


def _setting(meaning: str, value: str, *, default: str = "", secret: bool = False) -> Meta:
    """Describe a field: one line of meaning, what its value is, and its default in words."""
    return Meta(description=meaning, extra={"value": value, "default": default, "secret": secret})


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every setting of a server, checked."""

    bind: Annotated[
        str, _setting("Where the API listens. Port 0 takes any free one", "host:port")
    ] = "127.0.0.1:8000"
    data_dir: Annotated[
        Path,
        _setting(
            "Where the embedded store and the server's own key are kept",
            "path",
            default="`./data`",
        ),
    ] = Path("data")
    redis_url: Annotated[
        str | None,
        _setting(
            "The Redis or Valkey to use: `redis://`, `rediss://` or `unix://`",
            "URL",
            default="the embedded store",
            secret=True,
        ),
    ] = None
    workers: Annotated[int, _setting("API processes", "processes", default="one per core")] = (
        msgspec.field(default_factory=_cores)
    )
    public_url: Annotated[
        str | None,
        _setting("Base of the URLs in answers", "URL", default="from the Host header"),
    ] = None
    trusted_proxies: Annotated[
        tuple[str, ...],
        _setting(
            "Whose `X-Forwarded-Proto` and `X-Forwarded-Host` are believed",
            "addresses and networks with commas between, or `*`",
            default="nobody's",
        ),
    ] = ()
    appendfsync: Annotated[
        Literal["always", "everysec"],
        _setting(
            "When the embedded store forces writes to disk: before each answer, or every second",
            "`always` or `everysec`",
        ),
    ] = "everysec"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        _setting("What is logged, on stderr", "`debug`, `info`, `warning` or `error`"),
    ] = "info"
    request_log: Annotated[
        Literal["all", "errors", "off"],
        _setting(
            "Which requests are logged, as a line of JSON each on stderr: all, those answered with "
            "400 and above, or none. `all` costs up to half of the requests per second",
            "`all`, `errors` or `off`",
        ),
    ] = "errors"
    secret_key: Annotated[
        str | None,
        _setting(
            "Encrypts the signing secrets of applications. With a store of your own, give the "
            "same to every `belong serve` and to `belong secret create`",
            "text of 32 characters or more",
            default="the file `secret.key` in the data directory of the embedded store",
            secret=True,
        ),
    ] = None

    def __repr__(self) -> str:
        """Show the settings, with the secrets masked: this may end in a log."""
        return f"Config({', '.join(f'{n}={v!r}' for n, v in self.shown().items())})"

    def shown(self) -> dict[str, str]:
        """Give every setting as text that may be printed: passwords and keys masked."""
        return {name: _masked(name, _text(getattr(self, name))) for name in self.__struct_fields__}

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of `bind`."""
        host, _, port = self.bind.rpartition(":")
        return host.strip("[]"), int(port)

    def environment(self, **changes: str) -> dict[str, str]:
        """Give the environment of a child process: ours, with these settings and no flag needed.

        `changes` are settings of the child that differ. The data directory becomes absolute.
        """
        settings = {name: _text(getattr(self, name)) for name in self.__struct_fields__}
        settings |= {"data_dir": str(self.data_dir.absolute())} | changes
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(PREFIX) or name in NO_SETTINGS
        }
        return inherited | {variable(name): value for name, value in settings.items() if value}


def load(
    flags: Mapping[str, str | None] | None = None, environ: Mapping[str, str] | None = None
) -> Config:
    """Read the settings: flags before variables before defaults; an empty variable is no setting.

    Raises `Unusable` for a variable of ours that is no setting and for a value that cannot be, and
    `click.BadParameter` where the value came from a flag.
    """
    environ = os.environ if environ is None else environ
    given = {n: v for n, v in environ.items() if n.startswith(PREFIX) and n not in NO_SETTINGS}
    known = {variable(name): name for name in Config.__struct_fields__}
    for stranger in sorted(given.keys() - known.keys()):
        raise Unusable(f"{stranger} is no setting of Belong. Settings are: {', '.join(known)}")
    values: dict[str, Any] = {}
    for env_name, name in known.items():
        if text := given.get(env_name):
            try:
                values[name] = _parsed(name, text)
            except ValueError as error:
                raise Unusable(f"{env_name}: {error}") from None
    for name, flag_text in (flags or {}).items():
        if flag_text is not None:
            try:
                values[name] = _parsed(name, flag_text)
            except ValueError as error:
                raise click.BadParameter(str(error), param_hint=flag(name)) from None
    return Config(**values)


def flag(name: str) -> str:
    """Name the flag of a setting: `data_dir` -> `--data-dir`."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """Name the environment variable of a setting: `data_dir` -> `BELONG_DATA_DIR`."""
    return PREFIX + name.upper()


def options(*names: str) -> Callable[[_Command], _Command]:
    """Decorate a click command with the flags of these settings (all, if none are named).

    The command gets them as texts or None, for `load`.
    """

    def decorate(command: _Command) -> _Command:
        for name in reversed(names or Config.__struct_fields__):
            extra, meaning = _described(name)
            shown = click.option(
                flag(name),
                name,
                metavar=extra["value"].replace("`", "").partition(" ")[0].upper()
                if not _choices(name)
                else "|".join(_choices(name)),
                help=f"{meaning}. Default: {_default(name)}.".replace("`", ""),
            )
            command = shown(command)
        return command

    return decorate


def settings_table() -> str:
    """Render the README's table of settings; a test compares the two."""
    rows = ["| flag | variable | value | default | meaning |", "|---|---|---|---|---|"]
    for name in Config.__struct_fields__:
        extra, meaning = _described(name)
        default = _default(name) if extra["default"] else f"`{_default(name)}`"
        cells = (f"`{flag(name)}`", f"`{variable(name)}`", extra["value"], default, meaning)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def runtime_directories() -> list[Path]:
    """Where the socket of the embedded store may be made, best first (see `embedded`)."""
    own = os.environ.get("XDG_RUNTIME_DIR")
    places = [own] if own and os.path.isabs(own) else []  # noqa: PTH117 - no Path is made of ""
    return [Path(place) for place in [*places, tempfile.gettempdir(), "/tmp"]]  # noqa: S108 - a directory of our own, checked, is made in it


def scratch_directories() -> list[Path]:
    """Where small files may be kept that are written all the time, best first.

    In memory, where there is such a place: on a disk, writing can wait for other people's writes.
    """
    *own, temporary, last = runtime_directories()
    shared = Path("/dev/shm")  # noqa: S108 - a directory of our own is made in it
    return [*own, *([shared] if os.access(shared, os.W_OK) else []), temporary, last]


def _hints() -> dict[str, Any]:
    return get_type_hints(Config, include_extras=True)


def _described(name: str) -> tuple[dict[str, Any], str]:
    meta: Meta = get_args(_hints()[name])[1]
    return meta.extra or {}, meta.description or ""


def _choices(name: str) -> tuple[str, ...]:
    kind = get_args(_hints()[name])[0]
    return get_args(kind) if getattr(kind, "__origin__", None) is Literal else ()


def _default(name: str) -> str:
    return str(_described(name)[0]["default"]) or _text(getattr(Config(), name))


def _text(value: object) -> str:
    if value is None:
        return ""
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _masked(name: str, text: str) -> str:
    extra, _ = _described(name)
    if not text or not extra["secret"]:
        return text
    if extra["value"] != "URL" or "://" not in text:
        return _MASK
    # A URL stays recognisable. What may be a password stands before the host, or in the query.
    text, question, _ = text.partition("?")
    scheme, _, rest = text.partition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}://{_MASK if user else ''}{at}{host}{question}{_MASK if question else ''}"


def _parsed(name: str, text: str) -> Any:
    """Turn the text of a flag or variable into the value of the field, or raise ValueError."""
    if choices := _choices(name):
        if text not in choices:
            raise ValueError(f"must be {' or '.join(choices)}, not {text!r}")
        return text
    if name in _PARSERS:
        return _PARSERS[name](text)
    return text


def _parse_bind(text: str) -> str:
    host, colon, port = text.rpartition(":")
    whole = host and colon and port.isascii() and port.isdigit() and int(port) <= 65535
    if not whole or (":" in host and not (host[0] == "[" and host[-1] == "]")):
        raise ValueError(f"must be host:port like 127.0.0.1:8000 or [::1]:8000, not {text!r}")
    return text


def _parse_workers(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1024):
        raise ValueError(f"must be a number from 1 to 1024, not {text!r}")
    return int(text)


def _parse_public_url(text: str) -> str:
    parts = urllib.parse.urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"must be like https://groups.example.com, not {text!r}")
    return text.rstrip("/")


def _parse_proxies(text: str) -> tuple[str, ...]:
    places = tuple(place.strip() for place in text.split(",") if place.strip())
    for place in places:
        if place != "*":
            try:
                ipaddress.ip_network(place)
            except ValueError as error:
                raise ValueError(f"must be addresses, networks or *: {error}") from None
    return places


def _parse_secret_key(text: str) -> str:
    if len(text) < 32:
        raise ValueError("must have at least 32 characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid UTF-8") from None
    return text


_PARSERS: dict[str, Callable[[str], Any]] = {
    "bind": _parse_bind,
    "data_dir": Path,
    "public_url": _parse_public_url,
    "secret_key": _parse_secret_key,
    "trusted_proxies": _parse_proxies,
    "workers": _parse_workers,
}
