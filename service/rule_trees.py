"""Rule trees in bodies: how they are read and written, and their schemas.

What a tree means is the matter of `rules`. Here bytes become what that reads: numbers stay exact,
and a tree that is far too large, or nested without end, is refused before anything is made of it.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated, Any, TypeGuard

import msgspec
from msgspec import UNSET, Meta, UnsetType

from service.attributes import NAME_CHARACTERS
from service.conditions import CONDITIONS, LIST_ITEMS, LONGEST_DAYS, PATTERN_CHARACTERS, TYPES
from service.decoding import decoded
from service.endpoint import NO_NUL
from service.errors import Invalid
from service.rules import DEPTH, GROUP_CHARACTERS, NODES, TREE_BYTES, parse_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.conditions import Condition
    from service.groups import Group
    from service.rules import Rule, Tree

Json = dict[str, Any]

FIELD = "rule_tree"
PLACE = f"$.{FIELD}"

SENT_BYTES = 4 * TREE_BYTES
"""How long a tree may be as it was sent: with blanks, and with characters written as escapes."""

_TREE = {"$ref": "#/components/schemas/RuleTree"}

RuleTreeJson = Annotated[msgspec.Raw, Meta(extra_json_schema=_TREE)]
"""A rule tree as it is sent and answered: bytes, of which nothing was made yet."""

GivenTree = Annotated[msgspec.Raw, Meta(extra_json_schema={"anyOf": [_TREE, {"type": "null"}]})]
"""The same where null stands for none; see `is_given`."""


def is_given(tree: msgspec.Raw | UnsetType) -> TypeGuard[msgspec.Raw]:
    """Tell whether a body holds a rule tree."""
    return tree is not UNSET and bytes(tree) != b"null"


def read_tree(sent: msgspec.Raw) -> Tree:
    """Read the rule tree of a body.

    :raises Invalid: it is no rule tree; the sentence names the place in it
    """
    raw = bytes(sent)
    if len(raw) > SENT_BYTES:
        said = f"a rule tree has at most {TREE_BYTES:,} bytes, or {SENT_BYTES:,} as it is sent"
        raise Invalid(f"{said}, and this one has {len(raw):,} - at `{PLACE}`", FIELD)
    try:
        given = decoded(_DECODER, None, raw)
    except Invalid as error:
        if isinstance(error.__cause__, msgspec.ValidationError):
            # Of whatever may stand there, an integer of thousands of digits is all that fails.
            raise Invalid(f"a number in it has too many digits - at `{PLACE}`", FIELD) from error
        raise
    return parse_tree(given, PLACE)


def rule_of(group: Group) -> Rule:
    """Give the rule of a dynamic group, as the directory has it."""
    numbers = {gid: (gid, number) for gid, number in group.leaf_groups.items()}
    return parse_tree(group.rule_tree).bound(group.number, group.rules_version, numbers)


def written(shown: object) -> msgspec.Raw:
    """Write a tree as it is shown."""
    return shown if isinstance(shown, msgspec.Raw) else msgspec.Raw(_ENCODER.encode(shown))


def _exact(text: str) -> Decimal:
    """Give a number as it was written. Of one beyond all exponents nothing more can be known."""
    try:
        return Decimal(text)
    except InvalidOperation:
        return _BEYOND


_BEYOND = Decimal("1E+999999")
_DECODER = msgspec.json.Decoder(float_hook=_exact)
_ENCODER = msgspec.json.Encoder(decimal_format="number")


def _array(items: Json, least: int, most: int, **more: Any) -> Json:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most, **more}


_NUMBER: Json = {
    "description": "At most 30 digits, and 15 decimals.",
    "anyOf": [
        {"type": "number"},
        {"type": "string", "pattern": r"^-?[0-9]{1,30}(\.[0-9]{1,15})?$"},
    ],
}
_DATE: Json = {
    "description": "ISO 8601, in UTC unless it says otherwise, or milliseconds since 1970.",
    "anyOf": [{"type": "string", "examples": ["2024-02-29"]}, {"type": "integer"}],
}
_TRUTH = "^([Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee])$"
_OPERANDS: dict[str, Json] = {
    "string": {"type": "string"},
    "number": _NUMBER,
    "boolean": {"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": _TRUTH}]},
    "date": _DATE,
    "list": {"type": "string"},
}
"""Type of a condition -> what a rule may compare with."""

_NATURAL: dict[str, Json] = {
    "string": {"type": "string"},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
}
"""The same where the leaf does not say the type, and the condition has several: it follows then."""

_SPECIAL: dict[str, Json] = {
    "pattern": {
        "description": "`*` is any run of characters, `?` is one.",
        "type": "string",
        "maxLength": PATTERN_CHARACTERS,
    },
    "between": _array(_NUMBER, 2, 2),
    "between_dates": _array(_DATE, 2, 2),
    "within_last_days": {
        "anyOf": [
            {"type": "integer", "minimum": 1, "maximum": LONGEST_DAYS},
            {"type": "string", "pattern": "^[0-9]{1,15}$"},
        ]
    },
}
"""Conditions that compare with something else."""


def _operand(condition: Condition, kind: str) -> Json:
    """Give the schema of what a condition takes of a type, where that is said or can only be it."""
    if condition.name == "in_list":
        return _array(_OPERANDS[kind], 1, LIST_ITEMS)
    return _SPECIAL.get(condition.name, _OPERANDS[kind])


def _natural(condition: Condition, kind: str) -> Json:
    """Give the schema of what has this type by itself."""
    if condition.name != "in_list":
        return _NATURAL[kind]
    return _array(_OPERANDS[kind], 1, LIST_ITEMS, prefixItems=[_NATURAL[kind]])


def _forms(condition: Condition) -> Iterator[tuple[Json, list[str]]]:
    """Give the forms that leaves of a condition may have: what else they hold, what they must."""
    if condition.bare is not None:
        yield {"type": {"type": "string", "enum": list(TYPES)}, "value": {"type": "null"}}, []
    for kind in condition.types:
        said: Json = {"type": "string", "const": kind}
        form = {"type": said, "value": _operand(condition, kind)}
        if len(condition.types) == 1:
            yield form, ["value"]
        else:
            yield form, ["type", "value"]
            if kind in _NATURAL:
                yield {"value": _natural(condition, kind)}, ["value"]


def _leaves() -> list[Json]:
    """Give the schemas of leaves over attributes: one for all conditions of the same form."""
    forms: dict[str, tuple[Json, list[str], list[str]]] = {}
    for condition in {each.name: each for each in CONDITIONS.values()}.values():
        for form, required in _forms(condition):
            alike = forms.setdefault(repr((form, required)), (form, required, []))
            alike[2].extend((condition.name, *condition.aliases))
    return [
        {
            "type": "object",
            "properties": {
                "attribute": _ATTRIBUTE,
                "condition": {"type": "string", "enum": names},
                **form,
            },
            "required": ["attribute", "condition", *required],
            "additionalProperties": False,
        }
        for form, required, names in forms.values()
    ]


def _branch(operators: list[str], most: int) -> Json:
    return {
        "type": "object",
        "properties": {
            "operator": {"type": "string", "enum": operators},
            "children": _array(_TREE, 1, most),
        },
        "required": ["operator", "children"],
        "additionalProperties": False,
    }


_ATTRIBUTE: Json = {"type": "string", "minLength": 1, "maxLength": NAME_CHARACTERS, **NO_NUL}

SCHEMAS: dict[str, Json] = {
    "RuleTree": {
        "title": "RuleTree",
        "description": (
            f"What makes a profile a member. At most {DEPTH} levels and {NODES} nodes, leaves too, "
            f"and {TREE_BYTES:,} bytes."
        ),
        "anyOf": [
            {"$ref": "#/components/schemas/RuleBranch"},
            {"$ref": "#/components/schemas/RuleOfAttribute"},
            {"$ref": "#/components/schemas/RuleOfGroup"},
        ],
    },
    "RuleBranch": {
        "title": "RuleBranch",
        "description": "All of its children, any of them, or not the one that it has.",
        "anyOf": [_branch(["AND", "OR"], NODES - 1), _branch(["NOT"], 1)],
    },
    "RuleOfAttribute": {
        "title": "RuleOfAttribute",
        "description": (
            "An attribute of the profile, own or inherited (`household:has_dog`). Texts are "
            "compared without case. An attribute that is missing fulfils `not_exists` and `empty` "
            "alone; a value of another type than the condition's fulfils none."
        ),
        "anyOf": _leaves(),
    },
    "RuleOfGroup": {
        "title": "RuleOfGroup",
        "description": "Membership in a static group, named by its id or custom id.",
        "type": "object",
        "properties": {
            "group": {
                "type": "string",
                "minLength": 1,
                "maxLength": GROUP_CHARACTERS,
                **NO_NUL,
            }
        },
        "required": ["group"],
        "additionalProperties": False,
    },
}
"""Schemas of the OpenAPI document, in which a tree stands in itself."""
