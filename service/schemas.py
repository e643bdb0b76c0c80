"""The schemas of the OpenAPI document: what structs look like, and the shapes of errors.

msgspec makes them. Pages, and their rows with the parameter `fields`, get shapes and names here.
"""

from __future__ import annotations

import re
from inspect import cleandoc
from typing import TYPE_CHECKING, Any, get_args, get_origin

import msgspec
from msgspec import inspect

from service import rule_trees
from service.errors import BelongError
from service.faces import IDENTITY_CODES, INTERNAL
from service.paging import PageBody

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from service.endpoint import Operation

Json = dict[str, Any]


def ref(kind: str, name: str) -> Json:
    """Refer to a component of the document."""
    return {"$ref": f"#/components/{kind}/{name}"}


def of(shape: Any) -> Json:
    """Give the schema of a struct, or of what else a body may be, with references to components."""
    template = "#/components/schemas/{name}"
    made: Json = _cleaned(msgspec.json.schema_components([shape], ref_template=template)[0][0])
    return made


def components(operations: list[Operation]) -> Json:
    """Give the schemas of all structs that bodies and answers consist of, and those of errors."""
    shapes = [
        shape
        for operation in operations
        for shape in (
            operation.body,
            operation.wire.reads,
            operation.reply,
            operation.wire.accepted,
            *operation.wire.lines,
            *operation.wire.problems.values(),
        )
        if shape is not None
    ]
    made = msgspec.json.schema_components(shapes, ref_template="#/components/schemas/{name}")[1]
    for struct in _structs(shapes):
        add_said(made[struct.__name__], struct)
    schemas = {_renamed(name): _cleaned(schema) for name, schema in made.items()}
    for operation in operations:
        if get_origin(operation.reply) is PageBody and _takes(operation, "fields"):
            row = get_args(operation.reply)[0].__name__
            schemas[f"{row}Row"] = _row(schemas[row])
            schemas[f"{row}Page"]["properties"]["results"]["items"] = ref("schemas", f"{row}Row")
    for row in [name.removesuffix("Row") for name in schemas if name.endswith("Row")]:
        if not any(getattr(shape, "__name__", "") == row for shape in shapes):
            del schemas[row]
    return schemas | rule_trees.SCHEMAS | _PROBLEMS


def add_said(schema: Json, struct: Any) -> None:
    """Add to the schema of a struct what no annotation of a field can say: it stands in `SCHEMA`.

    A field that is required, though it has a default, does not take that default: the struct has it
    so that its absence is refused with a sentence that says more.
    """
    said = getattr(struct, "SCHEMA", {})
    schema |= said
    for name in said.get("required", ()):
        described = schema["properties"][name]
        if "default" in described and described.pop("default") is None:
            choices = [each for each in described.pop("anyOf") if each != {"type": "null"}]
            described |= choices[0] if len(choices) == 1 else {"anyOf": choices}


def _row(schema: Json) -> Json:
    """Give the schema of a row: with the parameter `fields` any of its fields may be missing.

    All of them are where those are asked for that not every row has.
    """
    row = {key: value for key, value in schema.items() if key != "required"}
    row["title"] = f"{schema['title']}Row"
    row["description"] = (
        f"{schema['description']} All fields, or those that the parameter `fields` names."
    )
    if schema["properties"].keys() == set(schema["required"]):
        row["minProperties"] = 1
    return row


def _renamed(name: str) -> str:
    """Call a page of `GroupBody` `GroupBodyPage`."""
    return re.sub(r"PageBody_(\w+?)_$", r"\1Page", name)


def _cleaned(schema: Any) -> Any:
    """Rename references, and drop what says nothing."""
    if isinstance(schema, list):
        return [_cleaned(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _cleaned(value) for key, value in schema.items()}
    if isinstance(made.get("description"), str):
        made["description"] = cleandoc(made["description"])
    if "$ref" in made:
        head, _, name = made["$ref"].rpartition("/")
        made["$ref"] = f"{head}/{_renamed(name)}"
    if made.get("required") == []:
        del made["required"]
    if made.get("title", "").startswith("PageBody["):
        made["title"] = _renamed(re.sub(r"[\[\]]", "_", made["title"]))
    return made


def _structs(shapes: Iterable[Any]) -> Iterator[type[msgspec.Struct]]:
    """Give the structs that these shapes name, directly and inside."""
    seen: set[Any] = set()
    waiting: list[Any] = list(inspect.multi_type_info(shapes))
    while waiting:
        info = waiting.pop()
        if isinstance(info, inspect.StructType):
            if info.cls in seen:
                continue
            seen.add(info.cls)
            if get_origin(info.cls) is None:
                yield info.cls
            waiting += [field.type for field in info.fields]
        elif isinstance(info, inspect.UnionType):
            waiting += info.types
        else:
            inner = ("type", "item_type", "key_type", "value_type")
            waiting += [getattr(info, name) for name in inner if hasattr(info, name)]
            waiting += getattr(info, "item_types", ())


def _takes(operation: Operation, parameter: str) -> bool:
    return operation.query is not None and parameter in operation.query.__struct_fields__


_PROBLEMS: Json = {
    "Problem": {
        "title": "Problem",
        "description": "What is wrong, in a sentence and in a word.",
        "type": "object",
        "properties": {
            "detail": {"type": "string"},
            "error_code": {
                "type": "string",
                "examples": sorted({each.code for each in BelongError.__subclasses__()}),
            },
        },
        "required": ["detail", "error_code"],
        "additionalProperties": False,
    },
    "FieldProblem": {
        "title": "FieldProblem",
        "description": "The field or parameter that does not fit, and why.",
        "type": "object",
        "additionalProperties": {
            "type": "array",
            "items": {"type": "string"},
            "minItems": 1,
            "maxItems": 1,
        },
        "minProperties": 1,
        "maxProperties": 1,
        "examples": [{"name": ["Expected `str` of length >= 1 - at `$.name`"]}],
    },
    "Problems": {
        "title": "Problems",
        "description": "What is wrong, in the Group Identity API: one problem.",
        "type": "object",
        "properties": {
            "statusCode": {"type": "integer", "minimum": 400, "maximum": 599},
            "errors": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "code": {"type": "string", "enum": [*IDENTITY_CODES.values(), INTERNAL]},
                        "message": {"type": "string"},
                    },
                    "required": ["code", "message"],
                    "additionalProperties": False,
                },
                "minItems": 1,
                "maxItems": 1,
            },
        },
        "required": ["statusCode", "errors"],
        "additionalProperties": False,
    },
    "Refusal": {
        "title": "Refusal",
        "oneOf": [
            {"$ref": "#/components/schemas/Problem"},
            {"$ref": "#/components/schemas/FieldProblem"},
        ],
    },
}
