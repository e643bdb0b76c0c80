"""Signing: the token of a profile, the server's secret key, and secrets that are kept under it."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import jwt
import msgspec
import pytest

from service import keys, signing
from service.config import Config
from service.environment import (
    Application,
    ApplicationDocument,
    EnvironmentDocument,
    SigningSecret,
    as_application,
)
from service.errors import Conflict, Invalid, NotFound, Unavailable, Unusable
from service.signing import KEY_FILE, SECRETS_MAX, Seal
from tests.serving import ROOT, Serving, eventually

KEY = "k" * 32
SECRET = "s" * 40
ID16 = bytes(range(16))
TEXT = "00010203-0405-0607-0809-0a0b0c0d0e0f"


def an_application(client_id: str = "demo", secret: bytes = b"s" * 32) -> Application:
    document = ApplicationDocument(
        client_id=client_id,
        workspace_id=1,
        name="Demo",
        secret=secret,
        created_at_us=1,
        environments={"production": EnvironmentDocument(1, ("1.0",))},
    )
    return as_application(1, document)


# --- profile tokens


def test_the_token_of_a_profile_names_it_and_when_it_was_created_and_never_expires():
    application = an_application()

    token = signing.profile_token(application, ID16, 1_763_758_800_000_123)

    assert jwt.get_unverified_header(token) == {
        "alg": "HS256",
        "kid": "profile:demo",
        "typ": "profile+jwt",
    }
    claims = jwt.decode(token, signing.profile_key(application), algorithms=["HS256"])
    assert isinstance(claims.pop("iat"), int)
    assert claims == {"iss": "demo", "sub": TEXT, "since": 1_763_758_800_000_123}


def test_the_key_of_profile_tokens_is_of_one_application_and_for_nothing_else():
    application = an_application()
    others = [an_application(secret=b"t" * 32), an_application("other", b"u" * 32)]

    found = {signing.profile_key(each) for each in [application, *others]}

    assert 3 == len(found)
    assert application.secret not in found
    assert {32} == {len(each) for each in found}


def test_a_key_of_the_registry_is_never_named_like_one_of_profile_tokens():
    assert "demo" == signing.client_id_of("profile:demo")
    for kid in ("0123456789abcdef", "demo", "Profile:demo", "", None, 7, ["profile:demo"]):
        assert signing.client_id_of(kid) is None


# --- the secret key


def test_the_key_is_made_once_for_its_owner_alone(tmp_path):
    settings = Config(data_dir=tmp_path)
    path = tmp_path / KEY_FILE
    assert signing.secret_key(settings) is None
    assert not path.exists()

    made = signing.secret_key(settings, make=True)

    assert made == path.read_text().strip()
    assert 43 == len(made or "")
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert made == signing.secret_key(settings, make=True) == signing.secret_key(settings)
    assert [path] == list(tmp_path.iterdir())


def test_processes_that_make_it_at_the_same_time_have_the_same_key(tmp_path):
    settings = Config(data_dir=tmp_path)
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(lambda _: signing.secret_key(settings, make=True), range(50)))

    assert 1 == len(made)
    assert [tmp_path / KEY_FILE] == list(tmp_path.iterdir())


def test_a_key_that_is_given_is_the_one_even_if_there_is_a_file(tmp_path, caplog):
    given = Config(data_dir=tmp_path, secret_key=KEY)
    assert KEY == signing.secret_key(given, make=True)
    assert [] == list(tmp_path.iterdir())
    assert "" == caplog.text
    signing.secret_key(Config(data_dir=tmp_path), make=True)

    assert KEY == signing.secret_key(given, make=True)

    assert "holds another key than --secret-key, and is not used" in caplog.text


def test_with_a_store_of_your_own_there_is_no_file(tmp_path):
    url = "redis://127.0.0.1:1"
    signing.secret_key(Config(data_dir=tmp_path), make=True)

    assert signing.secret_key(Config(data_dir=tmp_path, redis_url=url), make=True) is None
    given = Config(data_dir=tmp_path, redis_url=url, secret_key=KEY)
    assert KEY == signing.secret_key(given, make=True)


def test_a_file_that_others_can_read_is_complained_about(tmp_path, caplog):
    settings = Config(data_dir=tmp_path)
    made = signing.secret_key(settings, make=True)
    (tmp_path / KEY_FILE).chmod(0o644)

    assert made == signing.secret_key(settings)

    assert "can be read by others (mode 644): chmod 600 it" in caplog.text


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff" * 40])
def test_a_file_that_holds_no_key_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / KEY_FILE
    path.write_bytes(content)
    path.chmod(0o600)

    with pytest.raises(Unusable, match=KEY_FILE):
        signing.secret_key(Config(data_dir=tmp_path), make=True)

    assert content == path.read_bytes()


def test_a_place_where_no_file_can_be_made_is_refused(tmp_path):
    (tmp_path / KEY_FILE).mkdir()
    with pytest.raises(Unusable, match="cannot be used"):
        signing.secret_key(Config(data_dir=tmp_path), make=True)
    with pytest.raises(Unusable, match="cannot be used"):
        signing.secret_key(Config(data_dir=tmp_path / "nowhere"), make=True)


# --- the seal


def kept(seal: Seal, client_id: str = "demo", secret_id: str = "1") -> SigningSecret:
    sealed = seal.seal(client_id, secret_id, SECRET.encode())
    return SigningSecret(id=secret_id, sealed=sealed, created_at_us=1)


def test_what_is_sealed_is_opened_by_the_same_key_and_cannot_be_read():
    found = kept(Seal(KEY))

    assert SECRET.encode() == Seal(KEY).open("demo", found)
    assert b"ssss" not in found.sealed
    assert found.sealed != kept(Seal(KEY)).sealed


def test_a_sealed_secret_cannot_be_opened_elsewhere_or_when_it_was_changed(caplog):
    caplog.set_level(logging.ERROR)
    found = kept(Seal(KEY))
    sealed = found.sealed
    wrong = [
        (Seal("w" * 32), "demo", found),
        (Seal(KEY), "other", found),
        (Seal(KEY), "demo", msgspec.structs.replace(found, id="2")),
        *(
            (Seal(KEY), "demo", msgspec.structs.replace(found, sealed=changed))
            for changed in (
                sealed[:-1],
                sealed[:-1] + bytes([sealed[-1] ^ 1]),
                sealed[:5] + bytes([sealed[5] ^ 1]) + sealed[6:],
                sealed[:13],
                sealed[:3],
                sealed + b"x",
            )
        ),
    ]
    for seal, client_id, each in wrong:
        caplog.clear()
        assert seal.open(client_id, each) is None
        assert f"signing secret {each.id} of {client_id} cannot be used: it was made" in caplog.text
    for changed in (b"", b"\x02" + sealed[1:]):
        caplog.clear()
        assert Seal(KEY).open("demo", msgspec.structs.replace(found, sealed=changed)) is None
        assert "a newer version wrote it" in caplog.text


def test_without_a_key_nothing_is_sealed_and_it_says_what_to_do():
    with pytest.raises(Unusable, match=r"give --secret-key \(BELONG_SECRET_KEY\)"):
        Seal(None).seal("demo", "1", b"secret")


def test_an_application_s_secrets_are_opened_newest_first_as_far_as_they_can_be():
    old, newer = kept(Seal(KEY), secret_id="1"), kept(Seal(KEY), secret_id="2")
    lost = kept(Seal("w" * 32), secret_id="3")
    newer = msgspec.structs.replace(newer, created_at_us=2)
    application = an_application()
    held = {each.id: each for each in (old, newer, lost)}

    assert [] == Seal(None).opened(application)
    application = msgspec.structs.replace(application, signing_secrets=held)
    assert [SECRET.encode()] * 2 == Seal(KEY).opened(application)
    only_lost = msgspec.structs.replace(application, signing_secrets={"3": lost})
    with pytest.raises(Unavailable):
        Seal(KEY).opened(only_lost)


# --- in the registry


async def test_signing_secrets_are_made_listed_and_deleted(store, second):
    for client_id in ("one", "two"):
        await store.registry.create_application(client_id)
    seal = Seal(KEY)
    first, text = await signing.create_secret(store.registry, seal, "one")
    brought, again = await signing.create_secret(store.registry, seal, "one", SECRET)
    other, _ = await signing.create_secret(second.registry, seal, "two")

    assert (43, SECRET) == (len(text), again)
    assert [("one", first.id), ("one", brought.id), ("two", other.id)] == [
        (application.client_id, each.id)
        for application, each in await signing.list_secrets(second.registry)
    ]
    found = await second.registry.application("one")
    assert [SECRET.encode(), text.encode()] == seal.opened(found)
    await signing.delete_secret(store.registry, first.id)
    assert [SECRET.encode()] == seal.opened(await store.registry.application("one"))
    with pytest.raises(NotFound, match=f"no signing secret {first.id}"):
        await signing.delete_secret(store.registry, first.id)
    with pytest.raises(NotFound, match="no application nobody"):
        await signing.create_secret(store.registry, seal, "nobody")


async def test_the_text_of_a_secret_is_nowhere_in_the_store(store, application):
    await signing.create_secret(store.registry, Seal(KEY), "test", SECRET)

    key = keys.key(keys.REGISTRY, "applications")
    held = b"".join(await store.connection.command(key, "HGETALL", key))

    assert b"signing_secrets" in held
    assert SECRET.encode() not in held
    assert KEY.encode() not in held


# The last is what stdin gives of bytes that are no UTF-8: it ended in a traceback.
@pytest.mark.parametrize(
    "brought", ["", "x" * 31, "x" * 1025, "ssh-rsa " + "A" * 40, "\udcff" * 40]
)
async def test_a_secret_that_is_brought_has_to_be_one(api, brought):
    with pytest.raises(Invalid):
        await signing.create_secret(api.store.registry, Seal(KEY), "demo", brought)
    assert [] == await signing.list_secrets(api.store.registry)


async def test_an_application_has_so_many_secrets_and_no_more(api):
    registry = api.store.registry
    made = [await signing.create_secret(registry, Seal(KEY), "demo") for _ in range(SECRETS_MAX)]
    with pytest.raises(Conflict, match="delete one first"):
        await signing.create_secret(registry, Seal(KEY), "demo")

    await signing.delete_secret(registry, made[0][0].id)
    await signing.create_secret(registry, Seal(KEY), "demo")


async def test_a_key_that_opens_none_of_the_secrets_makes_no_more_of_them(api):
    """The command would have printed a secret that no API process can use."""
    registry = api.store.registry
    made, _ = await signing.create_secret(registry, Seal(KEY), "demo")
    with pytest.raises(Unusable, match="made under another --secret-key"):
        await signing.create_secret(registry, Seal("w" * 32), "demo")

    assert [made.id] == [each.id for _, each in await signing.list_secrets(registry)]
    await signing.delete_secret(registry, made.id)
    await signing.create_secret(registry, Seal("w" * 32), "demo")


async def test_members_of_secrets_that_a_newer_version_wrote_stay(api):
    registry = api.store.registry
    made, _ = await signing.create_secret(registry, Seal(KEY), "demo")

    def newer(document):
        held = document["signing_secrets"]
        return {"signing_secrets": {made.id: held[made.id] | {"colour": "red"}}, "shape": "round"}

    await registry.change_application("demo", newer)
    more, _ = await signing.create_secret(registry, Seal(KEY), "demo")
    await signing.delete_secret(registry, more.id)
    await registry.update_application("demo", name="N")

    seen = {}
    await registry.change_application("demo", lambda document: seen.update(document) or {})
    assert ("red", "round") == (seen["signing_secrets"][made.id]["colour"], seen["shape"])


# --- with `belong serve`


def command(one: Serving, *arguments: str, **environment: str) -> str:
    """Run a command on the data directory of a server, and give what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "service", *arguments, "--data-dir", str(one.data_dir)],
        cwd=ROOT,
        env={n: v for n, v in os.environ.items() if not n.startswith("BELONG_")} | environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout


def asked(one: Serving, secret: str) -> tuple[int, str]:
    """Send a token that this secret signed: status and sentence."""
    claims = {"iss": "demo", "iat": int(time.time()), "custom_profile_id": "alice"}
    token = jwt.encode(claims, secret, algorithm="HS256")
    path = "/api/v1/applications/demo/profile-groups/"
    answer = httpx.get(one.base + path, headers={"Authorization": f"Bearer {token}"}, timeout=5)
    return answer.status_code, answer.json()["detail"]


BELIEVED = "This needs a token with the scope groups:read. The token of a profile reads and "


def test_a_server_believes_what_a_secret_of_the_command_signed_after_a_restart_too(serve):
    one = serve("--demo").ready()
    create = ("secret", "create", "--application", "demo", "--json")
    secret = json.loads(command(one, *create))["secret"]
    assert 0o600 == stat.S_IMODE((one.data_dir / KEY_FILE).stat().st_mode)

    eventually(lambda: asked(one, secret)[0] == 403, 3)
    assert asked(one, secret)[1].startswith(BELIEVED)
    assert 401 == asked(one, "w" * 32)[0]
    assert secret not in one.log.read_text()
    assert one.stop() == 0
    again = serve().ready()
    assert 403 == asked(again, secret)[0]


def test_a_server_with_another_key_is_503_and_its_log_says_why(serve):
    one = serve("--demo").ready()
    secret = json.loads(command(one, "secret", "create", "--application", "demo", "--json"))
    assert one.stop() == 0

    other = serve("--secret-key", KEY).ready()

    for _ in range(3):
        status, detail = asked(other, secret["secret"])
        assert (503, "The server cannot read its signing secrets; its log says why.") == (
            status,
            detail,
        )
    said = other.log.read_text()
    why = f"signing secret {secret['id']} of demo cannot be used: it was made under another"
    assert 1 == said.count(why)
    assert f"{KEY_FILE} holds another key than --secret-key, and is not used" in said
    assert KEY not in said
    assert secret["id"] in command(other, "secret", "list")
    command(other, "secret", "delete", secret["id"])
    create = ("secret", "create", "--application", "demo", "--json")
    made = json.loads(command(other, *create, BELONG_SECRET_KEY=KEY))["secret"]
    eventually(lambda: asked(other, made)[0] == 403, 3)
