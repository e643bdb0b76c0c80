"""Group definitions: who is grouped by which attribute, and what groups share (Group Identity API).

Owns the shape of a definition on the wire and what may be written into one. What is malformed is
400, what breaks a rule 422; fields that there are not are ignored, as on all of this face. A change
answers when it is in force; the header `X-Belong-Job` names the job that derives what follows from
it for the users that there are.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from service.attributes import NAME_CHARACTERS
from service.endpoint import NO_NUL, Resource, Wire, endpoint, moment
from service.errors import Unprocessable
from service.grouping import AGGREGATIONS, GroupAttribute
from service.store_definitions import DefinitionChanges, NewDefinition

if TYPE_CHECKING:
    from service.admission import TenantCall
    from service.grouping import Definition

DESCRIPTION_CHARACTERS = 255
ATTRIBUTE_CHARACTERS = 223
"""With the id of a definition and a colon these are 256, as many as a name may have."""
JOB_HEADER = "X-Belong-Job"
_NAMES_JOB = Wire(headers=(JOB_HEADER,))

ID = re.compile(r"[A-Za-z0-9_.$-]{3,32}")

DefinitionId = Annotated[
    str, Meta(extra_json_schema={"pattern": f"^{ID.pattern}$", "minLength": 3, "maxLength": 32})
]
Description = Annotated[
    str, Meta(extra_json_schema={"maxLength": DESCRIPTION_CHARACTERS, **NO_NUL})
]
Source = Annotated[
    str, Meta(extra_json_schema={"minLength": 1, "maxLength": NAME_CHARACTERS, **NO_NUL})
]
AttributeId = Annotated[
    str, Meta(extra_json_schema={"minLength": 1, "maxLength": ATTRIBUTE_CHARACTERS, **NO_NUL})
]
Aggregation = Annotated[str, Meta(extra_json_schema={"enum": list(AGGREGATIONS)})]
"""For the document alone: what does not fit these is no malformed body (400), but 422."""


class SharedAttributeBody(msgspec.Struct, forbid_unknown_fields=True):
    """An attribute that a group's members share, and how their values become one."""

    id: str
    type: Aggregation


class DefinitionBody(msgspec.Struct, forbid_unknown_fields=True):
    """A group definition as it is answered."""

    id: str
    description: str
    source_user_attribute: str
    attributes: list[SharedAttributeBody]
    created_on: str
    created_by: str
    last_modified_on: str
    last_modified_by: str


class NewSharedAttribute(msgspec.Struct):
    """An attribute to share: the name of the members' own one, and how their values become one."""

    SCHEMA: ClassVar[dict[str, object]] = {"required": ["id", "type"]}

    id: AttributeId | UnsetType = UNSET
    type: Aggregation | UnsetType = UNSET


class DefinitionChangesBody(msgspec.Struct, kw_only=True):
    """Changes of a definition: fields not given stay, `attributes` replaces all of them."""

    description: Description | UnsetType | None = UNSET
    source_user_attribute: Source | UnsetType = UNSET
    attributes: list[NewSharedAttribute] | UnsetType = UNSET

    def changes(self) -> dict[str, Any]:
        """Give what is given, as the store takes it.

        :raises Unprocessable: it breaks a rule
        """
        given: dict[str, Any] = {}
        if self.description is not UNSET:
            given["description"] = _text(
                "description", self.description or "", DESCRIPTION_CHARACTERS, least=0
            )
        if self.source_user_attribute is not UNSET:
            given["source_user_attribute"] = _text(
                "source_user_attribute", self.source_user_attribute, NAME_CHARACTERS
            )
        if self.attributes is not UNSET:
            given["attributes"] = _attributes(self.attributes)
        return given


class NewDefinitionBody(DefinitionChangesBody, kw_only=True):
    """A definition to create. One without attributes groups users, and they share nothing."""

    SCHEMA: ClassVar[dict[str, object]] = {"required": ["id", "source_user_attribute"]}

    id: DefinitionId | UnsetType = UNSET


class Definitions(Resource):
    """`/platform/workspaces/{ws}/groups`."""

    @endpoint("definitions:read", reply=list[DefinitionBody])
    async def on_get(self, call: TenantCall) -> list[DefinitionBody]:
        """List the group definitions of a workspace.

        All of them, the oldest first.
        """
        return list(map(_body, await call.store.definitions.list_definitions(call.application)))

    @endpoint(
        "definitions:write",
        body=NewDefinitionBody,
        reply=DefinitionBody,
        errors=(HTTPStatus.UNPROCESSABLE_ENTITY,),
        wire=_NAMES_JOB,
    )
    async def on_post(self, call: TenantCall, body: NewDefinitionBody) -> DefinitionBody:
        """Create a group definition.

        From now on users with one value of its source attribute are a group. Those that there are
        become groups by the job that `X-Belong-Job` names; in a weekly application, on Monday.
        """
        new = NewDefinition(
            id=_required("id", body.id),
            source_user_attribute=_required("source_user_attribute", body.source_user_attribute),
        )
        if ID.fullmatch(new.id) is None:
            message = (
                "Field 'id' must have 3 to 32 characters, each a letter of A to Z, a digit, or one "
                "of `_`, `.`, `$` and `-`."
            )
            raise Unprocessable(message)
        new = msgspec.structs.replace(new, **body.changes())
        made, job = await call.store.definitions.create_definition(
            call.application, new, call.author
        )
        _name_job(call, job)
        return _body(made)


class OneDefinition(Resource):
    """`/platform/workspaces/{ws}/groups/{did}`."""

    @endpoint("definitions:read", reply=DefinitionBody)
    async def on_get(self, call: TenantCall, *, did: str) -> DefinitionBody:
        """Read a group definition."""
        return _body(await call.store.definitions.get_definition(call.application, did))

    @endpoint(
        "definitions:write",
        body=DefinitionChangesBody,
        reply=DefinitionBody,
        errors=(HTTPStatus.UNPROCESSABLE_ENTITY,),
        wire=_NAMES_JOB,
    )
    async def on_put(
        self, call: TenantCall, body: DefinitionChangesBody, *, did: str
    ) -> DefinitionBody:
        """Change a group definition, or set its attributes.

        Fields that are not given stay; `attributes` replaces all of them. Another source makes
        other groups. Where neither it nor attributes change there is no job.
        """
        changes = DefinitionChanges(**body.changes())
        changed, job = await call.store.definitions.update_definition(
            call.application, did, changes, call.author
        )
        _name_job(call, job)
        return _body(changed)

    @endpoint("definitions:write", status=HTTPStatus.NO_CONTENT, wire=_NAMES_JOB)
    async def on_delete(self, call: TenantCall, *, did: str) -> None:
        """Delete a group definition.

        What users inherited by it nobody is shown any more when this is answered.
        """
        _name_job(call, await call.store.definitions.delete_definition(call.application, did))


def _required(name: str, value: str | UnsetType) -> str:
    if value is UNSET:
        message = f"Field '{name}' is required."
        raise Unprocessable(message)
    return value


def _text(name: str, value: str, most: int, *, least: int = 1) -> str:
    if not least <= len(value) <= most:
        message = f"Field '{name}' must have {least} to {most} characters, and has {len(value):,}."
        raise Unprocessable(message)
    if "\0" in value:
        message = f"Field '{name}' must not hold a NUL character."
        raise Unprocessable(message)
    return value


def _attributes(given: list[NewSharedAttribute]) -> tuple[GroupAttribute, ...]:
    made: dict[str, GroupAttribute] = {}
    for place, each in enumerate(given):
        where = f"attributes[{place}]"
        name = _text(f"{where}.id", _required(f"{where}.id", each.id), ATTRIBUTE_CHARACTERS)
        kind = _required(f"{where}.type", each.type)
        if kind not in AGGREGATIONS:
            message = (
                f"Field '{where}.type' is {kind[:64]!r}, which is no aggregation. There are: "
                f"{', '.join(AGGREGATIONS)}."
            )
            raise Unprocessable(message)
        if name in made:
            message = f"Field '{where}.id' must be unique: there is another {name[:64]!r}."
            raise Unprocessable(message)
        made[name] = GroupAttribute(name, kind)
    return tuple(made.values())


def _name_job(call: TenantCall, job: str | None) -> None:
    if job is not None:
        call.response.set_header(JOB_HEADER, job)


def _body(definition: Definition) -> DefinitionBody:
    return DefinitionBody(
        id=definition.id,
        description=definition.description or "",
        source_user_attribute=definition.source_user_attribute,
        attributes=[SharedAttributeBody(each.id, each.type) for each in definition.attributes],
        created_on=moment(definition.created_at_us),
        created_by=definition.created_by,
        last_modified_on=moment(definition.modified_at_us),
        last_modified_by=definition.modified_by,
    )
