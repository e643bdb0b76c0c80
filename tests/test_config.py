"""The settings: each fact about one stands in its field, and everything else follows from that."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from service import config
from service.errors import Unusable

README = Path(__file__).resolve().parent.parent / "README.md"
KEY = "k" * 32


def test_without_flags_and_variables_every_setting_has_its_default():
    settings = config.load({}, {})
    assert settings.address == ("127.0.0.1", 8000)
    assert settings.data_dir == Path("data")
    assert settings.redis_url is None
    assert settings.workers >= 1
    assert settings.trusted_proxies == ()
    assert settings.appendfsync == "everysec"


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_default():
    environ = {"BELONG_BIND": "0.0.0.0:80", "BELONG_WORKERS": "3", "PATH": "/bin"}
    settings = config.load({"workers": "5", "data_dir": None}, environ)
    assert settings.bind == "0.0.0.0:80"
    assert settings.workers == 5


def test_small_files_are_kept_in_memory_where_there_is_some(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    without = config.scratch_directories()
    assert without[-2:] == config.runtime_directories()
    assert set(without[:-2]) <= {Path("/dev/shm")}
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert config.scratch_directories() == [tmp_path, *without]


def test_an_empty_variable_is_no_setting():
    assert config.load({}, {"BELONG_REDIS_URL": "", "BELONG_WORKERS": ""}) == config.load({}, {})


def test_a_variable_that_is_no_setting_is_refused_by_name():
    with pytest.raises(Unusable, match=r"^BELONG_DATADIR is no setting of Belong"):
        config.load({}, {"BELONG_DATADIR": "x"})


def test_a_fault_point_is_no_setting_and_no_error():
    assert config.load({}, {"BELONG_FAULT": "sweep_group.swept"}) == config.load({}, {})


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("bind", "8000"),
        ("bind", ":8000"),
        ("bind", "localhost:"),
        ("bind", "localhost:http"),
        ("bind", "localhost:65536"),
        ("bind", "::1:8000"),
        ("bind", "localhost:٨"),
        ("workers", "0"),
        ("workers", "two"),
        ("workers", "-1"),
        ("workers", "1025"),
        ("public_url", "groups.example.com"),
        ("public_url", "ftp://groups.example.com"),
        ("public_url", "https://"),
        ("public_url", "https://[::1"),
        ("public_url", "https://groups.example.com/?a=b"),
        ("trusted_proxies", "10.0.0.0/8,load-balancer"),
        ("trusted_proxies", "10.0.0.1/8"),
        ("appendfsync", "no"),
        ("log_level", "loud"),
        ("secret_key", "short"),
        # Bytes that are no UTF-8: it was taken, and ended `belong serve` in a traceback.
        ("secret_key", KEY + "\udcff"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_the_name_it_came_under(name, bad):
    with pytest.raises(Unusable, match=f"^{config.variable(name)}: "):
        config.load({}, {config.variable(name): bad})
    with pytest.raises(click.BadParameter) as refusal:
        config.load({name: bad}, {})
    assert refusal.value.param_hint == config.flag(name)


@pytest.mark.parametrize(
    ("name", "good", "value"),
    [
        ("bind", "[::1]:0", "[::1]:0"),
        ("public_url", "https://groups.example.com/base/", "https://groups.example.com/base"),
        ("trusted_proxies", "10.0.0.0/8, ::1,*", ("10.0.0.0/8", "::1", "*")),
        ("secret_key", KEY, KEY),
    ],
)
def test_a_good_value_is_taken(name, good, value):
    assert getattr(config.load({name: good}, {}), name) == value


def test_an_ipv6_address_loses_its_brackets():
    assert config.load({"bind": "[::1]:8000"}, {}).address == ("::1", 8000)


def test_secrets_are_masked_wherever_settings_are_printed():
    url = "rediss://me:hunter2@host:6380/0?password=hunter3"
    settings = config.load({"redis_url": url, "secret_key": KEY}, {})
    assert "hunter" not in repr(settings)
    assert KEY not in repr(settings)
    assert settings.shown()["redis_url"] == "rediss://***@host:6380/0?***"
    assert config.load({"redis_url": "unix:///run/s"}, {}).shown()["redis_url"] == "unix:///run/s"


def test_a_secret_key_that_looks_like_a_url_is_masked_whole():
    # It was shown as a URL is: all but what stands before an @.
    settings = config.load({"secret_key": f"x://{KEY}"}, {})
    assert settings.shown()["secret_key"] == "***"


def test_a_child_reads_the_same_settings_from_its_environment(monkeypatch):
    monkeypatch.setenv("BELONG_BIND", "ignored:1")
    monkeypatch.setenv("BELONG_FAULT", "sweep_group.swept")
    flags = {"trusted_proxies": "10.0.0.0/8,::1", "workers": "3", "secret_key": KEY}
    settings = config.load(flags, {})
    environ = settings.environment(redis_url="unix:///run/s")
    assert environ["BELONG_FAULT"] == "sweep_group.swept"
    child = config.load({}, environ)
    assert child.redis_url == "unix:///run/s"
    assert child.data_dir == Path("data").absolute()
    same = ("bind", "workers", "trusted_proxies", "secret_key", "public_url")
    assert [getattr(child, name) for name in same] == [getattr(settings, name) for name in same]


def test_every_setting_is_a_flag_with_its_meaning_and_default():
    @click.command()
    @config.options()
    def command(**_flags: str | None) -> None: ...

    shown = " ".join(CliRunner().invoke(command, ["--help"], terminal_width=200).output.split())
    for name in config.Config.__struct_fields__:
        assert config.flag(name) in shown
    assert "Default: 127.0.0.1:8000." in shown
    assert "--appendfsync always|everysec" in shown


def test_the_readme_has_the_table_of_settings():
    found = re.search(r"(?m)^\| flag \|.*\n(?:\|.*\n)+", README.read_text())
    assert found is not None
    assert found[0] == config.settings_table()


def test_the_socket_of_the_store_goes_to_the_users_own_runtime_directory_first(monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert config.runtime_directories()[0] == Path("/run/user/7")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    assert Path("relative") not in config.runtime_directories()
