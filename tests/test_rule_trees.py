"""Rule trees in bodies: read exactly, refused with their place, and what the document says."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import openapi_schema_validator
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.conditions import CONDITIONS, LIST_ITEMS, TYPES
from service.errors import Invalid
from service.groups import Group
from service.rule_trees import SCHEMAS, SENT_BYTES, is_given, read_tree, rule_of, written

OPERANDS: dict[str, list[Any]] = {
    "string": ["", "Pro", "ß" * 300],
    "number": [0, -5, 12.5, "12.50", "-0", 10**29],
    "boolean": [True, False, "true", "FALSE"],
    "date": ["2024-02-29", "2024-02-29T12:00:00.5+02:00", 0, "1709164800000", -1],
    "list": ["", "red"],
}
SPECIAL: dict[str, list[Any]] = {
    "pattern": ["", "b*e", "?" * 256],
    "between": [[1, 1], [-0.5, "12.5"]],
    "between_dates": [["2024-02-29", 1709164800000]],
    "within_last_days": [1, 36_500, "30"],
}
LEAVES = [
    pytest.param({"attribute": "a", "condition": name, "type": kind, "value": value}, id=f"{name}")
    for name, condition in CONDITIONS.items()
    for kind in condition.types
    for value in (
        [OPERANDS[kind], OPERANDS[kind][:1]]
        if name == "in_list"
        else SPECIAL.get(name, OPERANDS[kind])
    )
] + [
    pytest.param({"attribute": "a", "condition": name, **more}, id=name)
    for name, condition in CONDITIONS.items()
    if condition.bare is not None
    for more in ({}, {"value": None}, {"type": "list"})
]


def raw(tree: object) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(tree).encode())


def conforms(tree: object) -> bool:
    """Tell whether the document allows a tree."""
    schema = {"$ref": "#/components/schemas/RuleTree", "components": {"schemas": SCHEMAS}}
    return openapi_schema_validator.OAS31Validator(schema).is_valid(tree)


def refusal(tree: object) -> Invalid | None:
    """Give why a tree is refused; None: it is read."""
    try:
        read_tree(raw(tree))
    except Invalid as error:
        return error
    return None


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_condition_and_type_is_read_and_is_in_the_document(leaf: dict[str, Any]) -> None:
    assert conforms(leaf)
    shown = json.loads(bytes(written(read_tree(raw(leaf)).shown)))
    assert leaf == shown


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_leaf_without_its_type_is_in_the_document_if_it_is_read(leaf: dict[str, Any]) -> None:
    leaf = {name: value for name, value in leaf.items() if name != "type"}
    assert conforms(leaf) == (refusal(leaf) is None)


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**32), 10**32),
    st.decimals(-(10**6), 10**6, places=3).map(float),
    st.sampled_from(["", "x", "12", "-1.5", "1e3", "TRUE", "2024-02-29", "1709164800000", "7"]),
)
names = st.sampled_from([*CONDITIONS, "resembles"])


@settings(max_examples=500, deadline=None)
@given(
    st.recursive(
        st.one_of(
            st.fixed_dictionaries(
                {"attribute": st.sampled_from(["a", "household:has_dog"]), "condition": names},
                optional={
                    "value": st.one_of(scalars, st.lists(scalars, max_size=3)),
                    "type": st.sampled_from([*TYPES, "colour"]),
                },
            ),
            st.fixed_dictionaries({"group": st.sampled_from(["", "vip", "x" * 255, "x" * 256])}),
        ),
        lambda inner: st.fixed_dictionaries(
            {"operator": st.sampled_from(["AND", "OR", "NOT", "XOR"])},
            optional={"children": st.lists(inner, max_size=3)},
        ),
        max_leaves=6,
    )
)
def test_what_is_read_is_in_the_document(tree: dict[str, Any]) -> None:
    refused = refusal(tree)

    if refused is None:
        assert conforms(tree)
    else:
        assert refused.field == "rule_tree"
        assert " - at `$.rule_tree" in str(refused)


def test_a_tree_may_be_sent_with_blanks_around_it_up_to_a_limit() -> None:
    leaf = b'{"attribute":"a","condition":"exists"}'

    assert read_tree(msgspec.Raw(leaf + b" " * (SENT_BYTES - len(leaf)))).attributes == {"a"}
    with pytest.raises(Invalid, match=f"{SENT_BYTES:,} as it is sent, and this one has 131,073"):
        read_tree(msgspec.Raw(leaf + b" " * (SENT_BYTES - len(leaf) + 1)))


def test_null_is_no_tree() -> None:
    assert not is_given(msgspec.UNSET)
    assert not is_given(msgspec.Raw(b"null"))
    assert is_given(msgspec.Raw(b"[]"))


def test_the_limits_of_the_document_are_those_of_the_rules() -> None:
    leaf = {"attribute": "a", "condition": "in_list", "value": ["x"] * LIST_ITEMS}
    assert conforms(leaf)
    assert not conforms(leaf | {"value": ["x"] * (LIST_ITEMS + 1)})
    assert not conforms(leaf | {"attribute": "a" * 257})
    assert not conforms({"operator": "NOT", "children": [leaf, leaf]})
    assert not conforms({"operator": "AND", "children": []})


def test_the_rule_of_a_group_is_bound_to_what_its_document_says() -> None:
    vip = "7b9a6f0e-2b0c-4b8e-9f7e-0d6a3c1e5f11"
    group = Group(
        id="3e5d1c80-57c2-4c0f-8d39-5f0a1f3d9c22",
        name="n",
        is_active=True,
        description=None,
        custom_id=None,
        created_at_us=1,
        attributes=(),
        membership_type="dynamic",
        rule_tree={"operator": "NOT", "children": [{"group": vip}]},
        leaf_groups={vip: 7},
        rules_version=5,
        number=9,
        version=2,
    )

    rule = rule_of(group)

    assert (9, 5, (7,), group.rule_tree) == (rule.number, rule.version, rule.groups, rule.shown)
