"""The house: who may import what, and whether the texts still name what is there."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from service import config, endpoint
from service.app import ROUTES, operations
from service.registry import SCOPES

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "service").rglob("*.py"))
SCRIPTS = sorted((ROOT / "lua").rglob("*.lua"))
NOUNS = {
    "applications", "audiences", "bulk", "definitions", "events", "explanations", "health",
    "instances", "jobs", "lookups", "members", "previews", "profile_groups", "profiles", "queries",
    "tokens", "user_profiles",
}  # fmt: skip
REDIS = {"connection", "lane", "topology", "fake"}
FALCON = NOUNS | {"admission", "app", "cors", "endpoint", "paging", "record"}
PURE = {
    "aggregation": {"service.attributes", "service.grouping"},
    "attributes": set(),
    "batches": {"service.attributes", "service.decoding", "service.errors"},
    "conditions": {
        "service.aggregation", "service.attributes", "service.errors", "service.patterns",
    },
    "contributions": {"service.attributes", "service.environment", "service.grouping"},
    "cuts": set(),
    "environment": set(),
    "errors": set(),
    "faces": {"service.errors"},
    "grouping": {"service.attributes"},
    "groups": {"service.rules"},
    "ids": set(),
    "job_record": {"service.environment", "service.grouping"},
    "keys": set(),
    "patterns": set(),
    "query_tree": {"service.errors"},
    "rules": {"service.attributes", "service.conditions", "service.errors", "service.grouping"},
    "subjects": {
        "service.attributes", "service.environment", "service.grouping", "service.rules",
    },
}  # fmt: skip
"""Modules without I/O, and which others of them each may import besides ids and keys."""
NO_NAMES = {"utils", "helpers", "common", "manager", "base", "core", "misc"}
LONGEST = 600
SPELLED_OUT = {
    "{gid}": "{group}", "{pid}": "{profile}", "{ws}": "{workspace}", "{did}": "{definition}",
    "{iid}": "{instance}", "{jid}": "{job}", "{aid}": "{audience}",
}  # fmt: skip
"""Path parameters, and how the README writes them."""


def imports(module):
    """Give the names of the modules that a module imports, and from `service` what it takes."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "service":
                found |= {f"service.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_only_the_wire_imports_redis(module):
    taken = {name for name in imports(module) if name.split(".")[0] in {"redis", "hiredis"}}
    assert not taken or module.stem in REDIS
    assert "fakeredis" not in imports(module) or module.stem == "fake"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_only_the_api_imports_falcon(module):
    assert not any(name.split(".")[0] == "falcon" for name in imports(module)) or (
        module.stem in FALCON
    )


@pytest.mark.parametrize("noun", sorted(NOUNS))
def test_nouns_of_the_api_do_not_import_each_other(noun):
    taken = imports(ROOT / "service" / f"{noun}.py")
    assert {f"service.{other}" for other in NOUNS - {noun}} & taken == set()


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_modules_import_no_store(name):
    allowed = {"service", "service.ids", "service.keys"} | PURE[name]
    taken = {each for each in imports(ROOT / "service" / f"{name}.py") if "service" in each}
    assert taken <= allowed
    assert not {"asyncio", "socket"} & imports(ROOT / "service" / f"{name}.py")


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_nothing_but_the_package_itself_imports_the_command_line(module):
    assert "service.cli" not in imports(module) or module.stem == "__main__"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_no_module_is_called_like_one_of_the_standard_library_or_like_a_drawer(module):
    assert module.stem not in (set(sys.stdlib_module_names) - {"__main__"}) | NO_NAMES


@pytest.mark.parametrize("file", MODULES + SCRIPTS, ids=lambda file: file.name)
def test_no_file_is_longer_than_can_be_read_at_a_sitting(file):
    assert len(file.read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_key_literals_stand_in_one_module(module):
    if module.stem != "keys":
        literals = [
            node.value
            for node in ast.walk(ast.parse(module.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, bytes)
        ]
        assert [each for each in literals if re.match(rb"\{(%d|belong)|:[a-z_]{2,}:", each)] == []


def test_the_architecture_names_every_module_and_no_other():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    table = text.partition("| file | what it owns |")[2].partition("\n\n")[0]
    named = set(re.findall(r"`([\w/]+\.py)`", table))
    found = {str(module.relative_to(ROOT / "service")) for module in MODULES}
    assert found - {"__init__.py"} == named


def test_every_file_that_the_architecture_links_to_exists():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for link in re.findall(r"\]\(([^)#]+)\)|`((?:lua|tests|service)/[\w./]+)`", text):
        path = next(filter(None, link))
        assert (ROOT / path).exists(), path


def test_the_readme_has_the_settings_of_the_code():
    text = (ROOT / "README.md").read_text()
    table = text.partition("service/config.py -->\n")[2].partition("\n<!-- /settings -->")[0]
    assert config.settings_table().strip() == table.strip()


def test_the_readme_names_every_scope():
    text = (ROOT / "README.md").read_text()
    assert [scope for scope in SCOPES if f"`{scope}`" not in text] == []


def test_the_readme_has_every_route_with_its_scope():
    text = (ROOT / "README.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    for method, path, operation in operations():
        short = path.removeprefix("/api/v1/applications/{cid}").lstrip("/") or "(the application)"
        for name, said in SPELLED_OUT.items():
            short = short.replace(name, said)
        near = [row for row in rows if re.search(rf"\b{method}\b", row) and short in row]
        assert near, (method, path)
        if operation.scope is not None:
            assert any(f"`{operation.scope}`" in row for row in near), (method, path)


def test_every_responder_of_a_route_is_an_endpoint():
    for path, resource in ROUTES:
        responders = [name for name in dir(resource) if name.startswith("on_")]
        assert responders, path
        for name in responders:
            assert endpoint.operation_of(getattr(resource, name)) is not None, (path, name)
