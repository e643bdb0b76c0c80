"""The command line: what it prints, where, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import jwt
import pytest
from click.testing import CliRunner

from service import __version__, cli, embedded, ids, keys, signing
from service.config import Config
from service.embedded import EmbeddedServer
from service.store import Store
from service.store_definitions import NewDefinition

if TYPE_CHECKING:
    from collections.abc import Iterator

    from click.testing import Result

ROOT = Path(__file__).resolve().parent.parent
CREDENTIAL = ("credential", "create", "--application", "shop")
SECRET = ("secret", "create", "--application", "shop")
KEY = "k" * 32
P1 = "174cc6dd-c1da-42d2-886e-c48b2bf803a8"


@pytest.fixture(autouse=True)
def _runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let sockets be made where nothing is left: a killed server leaves its empty directory."""
    with tempfile.TemporaryDirectory(prefix="run-", dir="/tmp") as place:
        monkeypatch.setenv("XDG_RUNTIME_DIR", place)
        yield


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """A data directory on which a store runs."""
    server = EmbeddedServer(tmp_path / "data")
    server.start()
    yield tmp_path / "data"
    server.stop()


@pytest.fixture
def belong(data_dir, monkeypatch):
    """Run a command that finds the store by the variable, and give its result."""
    for name in [name for name in os.environ if name.startswith("BELONG_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BELONG_DATA_DIR", str(data_dir))

    def run(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(cli.main, arguments, catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def shop(belong):
    """An application called `shop`."""
    return json.loads(belong("app", "create", "shop", "--workspace", "7", "--json").stdout)


def printed(result: Result) -> Any:
    """Read the one JSON value on stdout, where nothing else may be."""
    assert result.stderr == ""
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


def complaint(result: Result) -> str:
    """Read the one line on stderr."""
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("belong: ")
    return line.removeprefix("belong: ")


def test_an_application_is_created_shown_changed_listed_and_deleted(belong):
    made = printed(belong("app", "create", "shop", "--partitions", "8", "--name", "Shop", "--json"))
    created_at = made.pop("created_at")
    assert made == {
        "client_id": "shop",
        "workspace_id": 1,
        "name": "Shop",
        "partitions": 8,
        "profiles": "open",
        "groups_per_profile": 1000,
        "anonymous_profiles": True,
        "anonymous_per_minute": 6000,
        "requests_per_second": None,
        "grouping": "realtime",
        "definitions_per_workspace": 1,
        "attributes_per_definition": 10,
        "users_per_group": 10,
        "dynamic_groups": 1000,
    }
    assert len(created_at) == len("2026-01-02T03:04:05.678901Z")
    changes = ("--name", "Store", "--profiles", "registered", "--groups-per-profile", "20")
    changed = printed(belong("app", "update", "shop", *changes, "--json"))
    assert (changed["name"], changed["profiles"]) == ("Store", "registered")
    assert changed["groups_per_profile"] == 20
    assert printed(belong("app", "show", "shop", "--json")) == changed
    assert printed(belong("app", "list", "--json")) == [changed]
    belong("app", "delete", "shop", "--yes")
    assert printed(belong("app", "list", "--json")) == []


def test_limits_of_an_application_are_set_and_taken_away(belong, shop):
    def changed(*settings: str) -> tuple[object, ...]:
        found = printed(belong("app", "update", "shop", *settings, "--json"))
        assert found == printed(belong("app", "show", "shop", "--json"))
        names = ("anonymous_profiles", "anonymous_per_minute", "requests_per_second")
        return tuple(found[name] for name in names)

    assert changed("--anonymous-profiles", "off") == (False, 6000, None)
    assert changed("--anonymous-per-minute", "60") == (False, 60, None)
    assert changed("--requests-per-second", "100") == (False, 60, 100)
    assert changed("--name", "Store") == (False, 60, 100)
    assert changed("--requests-per-second", "none", "--anonymous-profiles", "on") == (
        True,
        60,
        None,
    )
    text = belong("app", "show", "shop").stdout
    assert "anonymous_profiles         on\n" in text
    assert "requests_per_second        none\n" in text


def test_settings_of_groups_are_followed_by_the_rules_at_once(belong, shop, data_dir):
    new = NewDefinition(id="household", source_user_attribute="$address")

    async def limits() -> tuple[int, bool]:
        store = await Store.open(str(embedded.find(data_dir)))
        application = await store.registry.application("shop")
        assert application is not None
        if not await store.definitions.list_definitions(application):
            await store.definitions.create_definition(application, new, "tests")
        rules = await store.definitions.reload(application.production)
        await store.close()
        return rules.limit, rules.weekly

    assert asyncio.run(limits()) == (10, False)
    given = ("--users-per-group", "3", "--grouping", "weekly")
    many = ("--definitions-per-workspace", "5", "--attributes-per-definition", "20")
    changed = printed(belong("app", "update", "shop", *given, *many, "--json"))
    assert [changed[name] for name in ("users_per_group", "grouping")] == [3, "weekly"]
    assert changed["definitions_per_workspace"] == 5
    assert changed["attributes_per_definition"] == 20
    assert asyncio.run(limits()) == (3, True)
    assert changed["dynamic_groups"] == 1000
    assert printed(belong("app", "update", "shop", "--dynamic-groups", "5000", "--json")) == (
        changed | {"dynamic_groups": 5000}
    )
    assert printed(belong("app", "show", "shop", "--json"))["dynamic_groups"] == 5000
    for number in ("0", "5001"):
        refused = belong("app", "update", "shop", "--dynamic-groups", number, code=1)
        assert "dynamic_groups" in complaint(refused)
    refused = belong("app", "update", "shop", "--users-per-group", "1001", code=1)
    assert "users_per_group" in complaint(refused)


def test_without_json_the_same_is_text_for_people(belong, shop):
    lines = belong("app", "show", "shop").stdout.splitlines()
    assert lines[:2] == [
        "client_id                  shop",
        "workspace_id               7",
    ]
    header, row = belong("app", "list").stdout.splitlines()
    assert header.split()[:2] == ["client_id", "workspace_id"]
    assert row.split()[:2] == ["shop", "7"]
    assert belong("credential", "list").stdout == ""


def test_deleting_asks_first(belong, shop):
    result = CliRunner().invoke(cli.main, ["app", "delete", "shop"], input="n\n")
    assert result.exit_code == 1
    assert printed(belong("app", "show", "shop", "--json")) == shop


@pytest.mark.parametrize(
    "arguments",
    [
        ("app", "show", "nobody"),
        ("app", "update", "nobody", "--name", "x"),
        ("app", "update", "shop", "--groups-per-profile", "20000"),
        ("app", "update", "shop", "--anonymous-per-minute", "0"),
        ("app", "update", "shop", "--requests-per-second", "0"),
        ("app", "update", "shop", "--requests-per-second", "1000001"),
        ("app", "delete", "nobody", "--yes"),
        ("app", "create", "shop"),
        ("app", "create", "other", "--workspace", "7"),
        ("app", "create", "no spaces"),
        ("app", "create", "other", "--partitions", "65"),
        ("credential", "create", "--application", "nobody", "--scope", "admin"),
        ("credential", "deactivate", "nobody"),
        ("token", "--application", "nobody"),
        ("token", "--application", "nobody", "--profile", P1),
        ("token", "--application", "shop", "--profile", P1),
        ("token", "--application", "shop", "--profile", "nobody"),
        ("secret", "create", "--application", "nobody", "--secret-key", KEY),
        ("secret", "delete", "nothing"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_1(belong, shop, arguments):
    assert complaint(belong(*arguments, code=1))


@pytest.mark.parametrize(
    "arguments",
    [
        ("app", "create"),
        ("app", "create", "x", "--profiles", "closed"),
        (*CREDENTIAL, "--scope", "everything"),
        CREDENTIAL,
        ("token",),
        ("token", "--application", "shop", "--scope", "everything"),
        ("token", "--application", "shop", "--profile", P1, "--scope", "admin"),
        ("token", "--application", "shop", "--application", "shop", "--profile", P1),
        ("app", "update", "shop", "--requests-per-second", "many"),
        ("app", "update", "shop", "--anonymous-profiles", "perhaps"),
        ("secret", "create"),
        (*SECRET, "--secret-key", "short"),
        ("nothing",),
        ("app", "list", "--log-level", "loud"),
        ("serve", "--workers", "0"),
    ],
)
def test_wrong_usage_is_exit_2(belong, shop, arguments):
    assert "Error: " in belong(*arguments, code=2).stderr


def test_a_credential_is_shown_with_its_secret_once(belong, shop):
    scopes = ("--scope", "groups:read", "--scope", "members:write")
    made = printed(belong(*CREDENTIAL, *scopes, "--json"))
    assert set(made) == {"client_id", "client_secret", "scopes", "applications"}
    assert made["scopes"] == ["groups:read", "members:write"]
    assert made["applications"] == ["shop"]
    listed = belong("credential", "list", "--json")
    assert made["client_secret"] not in listed.stdout
    [row] = printed(listed)
    assert (row["client_id"], row["active"]) == (made["client_id"], True)
    belong("credential", "deactivate", made["client_id"])
    assert printed(belong("credential", "list", "--json"))[0]["active"] is False


def test_a_token_is_printed_alone(belong, shop):
    token = belong("token", "--application", "shop").stdout
    assert token.count("\n") == 1
    claims = jwt.decode(token.strip(), options={"verify_signature": False})
    assert claims["scope"] == "admin"
    assert claims["applications"] == ["shop"]
    narrow = belong("token", "--application", "shop", "--scope", "groups:read").stdout
    claims = jwt.decode(narrow.strip(), options={"verify_signature": False})
    assert claims["scope"] == "groups:read"


async def make_profile(url: str, custom_id: str) -> bytes:
    """Create a profile in `shop`, as its first mention does."""
    store = await Store.open(url)
    application = await store.registry.application("shop")
    assert application is not None
    [found] = await store.profiles.resolve_identities(
        application.production, "customer_id", [custom_id], create=True
    )
    await store.close()
    assert found is not None
    return found


def test_the_token_of_a_profile_is_printed_alone_by_custom_id_or_uuid(belong, shop, data_dir):
    id16 = asyncio.run(make_profile(embedded.find(data_dir) or "", "alice"))
    seen = []
    for name in ("alice", ids.text(id16), ids.text(id16).upper()):
        token = belong("token", "--application", "shop", "--profile", name).stdout
        assert token.count("\n") == 1
        assert jwt.get_unverified_header(token.strip())["kid"] == "profile:shop"
        claims = jwt.decode(token.strip(), options={"verify_signature": False})
        seen.append((claims["iss"], claims["sub"], claims["since"]))
    assert set(seen) == {("shop", ids.text(id16), seen[0][2])}


def test_a_signing_secret_is_shown_once_listed_without_it_and_deleted(belong, shop, data_dir):
    signing.secret_key(Config(data_dir=data_dir), make=True)  # as `belong serve` does
    made = printed(belong(*SECRET, "--json"))
    assert set(made) == {"id", "application", "created_at", "secret"}
    assert len(made["secret"]) == 43
    listed = belong("secret", "list", "--json")
    assert made["secret"] not in listed.stdout
    assert printed(listed) == [{name: made[name] for name in ("id", "application", "created_at")}]
    assert "\nsecret       " in belong(*SECRET).stdout
    belong("secret", "delete", made["id"])
    assert made["id"] not in belong("secret", "list").stdout


def test_a_signing_secret_of_one_s_own_is_read_from_stdin(belong, shop, data_dir):
    settings = Config(data_dir=data_dir, secret_key=KEY)
    brought = "the client secret that I have had for years"
    for text in (brought, f"{brought}\n", f"{brought}\r\n"):
        arguments = [*SECRET, "--secret-stdin", "--secret-key", KEY, "--json"]
        result = CliRunner().invoke(cli.main, arguments, input=text, catch_exceptions=False)
        assert brought not in result.output
        assert printed(result)["application"] == "shop"
    assert signing.secret_key(settings) == KEY
    short = CliRunner().invoke(cli.main, [*SECRET, "--secret-stdin", "--secret-key", KEY], "short")
    assert complaint(short) == (
        "a signing secret has 32 to 1024 bytes (RFC 7518 for HS256), and this one 5"
    )


def test_without_a_key_there_is_no_signing_secret_and_it_says_what_to_do(belong, shop, data_dir):
    """No file is made here: a `serve` that runs with --secret-key would never read it."""
    told = complaint(belong(*SECRET, code=1))
    assert told == (
        "There is no key to encrypt signing secrets with: give --secret-key (BELONG_SECRET_KEY) "
        "here, the same as to every belong serve of this store."
    )
    assert not (data_dir / signing.KEY_FILE).exists()
    url = embedded.find(data_dir) or ""
    signing.secret_key(Config(data_dir=data_dir), make=True)
    assert complaint(belong(*SECRET, "--redis-url", url, code=1)) == told


def test_secrets_of_a_lost_key_can_be_listed_and_deleted(belong, shop):
    made = printed(belong(*SECRET, "--secret-key", KEY, "--json"))
    refused = belong(*SECRET, "--secret-key", "w" * 32, code=1)
    assert "made under another --secret-key" in refused.stderr
    assert printed(belong("secret", "list", "--json"))[0]["id"] == made["id"]
    belong("secret", "delete", made["id"])
    belong(*SECRET, "--secret-key", "w" * 32)


def test_a_rotated_key_signs_from_a_moment_to_come(belong):
    first = printed(belong("key", "rotate", "--json"))
    second = printed(belong("key", "rotate", "--json"))
    assert first["kid"] != second["kid"]
    assert first["signs_from"] <= second["signs_from"]


def test_verify_and_repair_find_nothing_wrong_in_a_fresh_store(belong, shop):
    report = printed(belong("verify", "--json"))
    assert report["ok"] is True
    assert report["problems"] == []
    assert report["checked"] > 0
    assert printed(belong("repair", "--json"))["ok"] is True
    assert belong("verify").stdout.endswith(" 0 problems\n")


def test_a_contradiction_is_named_then_mended_with_exit_codes_that_say_so(belong, shop, data_dir):
    asyncio.run(miscount(embedded.find(data_dir) or ""))
    report = printed(belong("verify", "--json", code=1))
    assert report["ok"] is False
    [problem] = report["problems"]
    assert belong("verify", code=1).stdout.splitlines()[0] == problem
    belong("repair", "--json")
    assert printed(belong("verify", "--json"))["ok"] is True


async def miscount(url: str) -> None:
    """Say that the application has profiles, of which there are none."""
    store = await Store.open(url)
    application = await store.registry.application("shop")
    assert application is not None
    count = keys.key(application.production.partitions[0], "count")
    await store.connection.command(count, "HSET", count, 0, 5)
    await store.close()


def test_where_no_store_runs_the_command_says_what_to_do(belong, tmp_path):
    told = complaint(belong("app", "list", "--data-dir", str(tmp_path / "other"), code=1))
    assert told.startswith(f"No store runs on {tmp_path / 'other'}: run belong serve")


def test_a_wrong_variable_is_one_line(belong, monkeypatch):
    monkeypatch.setenv("BELONG_DATA", "x")
    assert complaint(belong("app", "list", code=1)).startswith("BELONG_DATA is no setting")


def test_progress_goes_to_stderr_and_only_where_somebody_watches(monkeypatch):
    seen = []

    async def walk(_store, progress):
        for done in (0, 2, 5, 1, 4):  # more than there should be, and again from the start
            progress(done, 4)
            seen.append(done)
        return "the report"

    bars = []

    def bar(**options):
        bars.append(options)
        return Bar()

    monkeypatch.setattr(click, "progressbar", bar)
    run: Any = cli._with_progress
    assert asyncio.run(run("verify", walk, None)) == "the report"
    assert seen == [0, 2, 5, 1, 4]
    assert bars[0]["file"] is sys.stderr
    assert bars[0]["hidden"] is True


class Bar:
    """Stands for a bar, which must not run over its length."""

    pos = 0
    length = 1

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        assert self.pos == self.length

    def update(self, steps):
        self.pos += steps
        assert self.pos <= self.length


def test_version_and_the_module_are_the_same_program(belong):
    assert belong("version").stdout == f"{__version__}\n"
    assert belong("--version").stdout == f"belong, version {__version__}\n"
    done = subprocess.run(
        [sys.executable, "-m", "service", "version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{__version__}\n"
