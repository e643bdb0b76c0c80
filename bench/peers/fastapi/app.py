"""A peer of Belong: memberships in Redis, as somebody would write them with FastAPI.

Stands alone: it imports nothing of Belong. README.md beside this folder says what it does and does
not do. In the store:

    group:{id}             a JSON document
    group:{id}:count       how many members it has
    group:{id}:members     a sorted set: profile ids by the microsecond in which they joined
    profile:{id}:groups    a set of group ids
"""

# FastAPI and pydantic are installed for the peers alone, so for mypy they are Any.
# mypy: disable-error-code="import-not-found", disallow-subclassing-any=False
# mypy: disallow-untyped-decorators=False

import os
import re
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from pydantic import BaseModel, Field
from redis.asyncio import Redis

TOKENS = {os.environ["PEER_TOKEN"]: os.environ["PEER_APPLICATION"]}
"""Token -> the application that it is good for."""

UUID_TEXT = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

# Whoever finds the pool empty is refused, and by default that is the 101st.
redis = Redis(
    unix_socket_path=os.environ["PEER_REDIS"], decode_responses=True, max_connections=1024
)

COUNTED = "redis.call('SET', KEYS[2], redis.call('ZCARD', KEYS[1]))"
"""A transaction cannot use what its own commands answer: a script can."""


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Close the connections at the end."""
    yield
    await redis.aclose()


async def authorized(request: Request) -> None:
    """Let nobody in without a token for the application of the path."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or token not in TOKENS:
        raise HTTPException(401, "Send Authorization: Bearer <token>.")
    if TOKENS[token] != request.path_params["application"]:
        raise HTTPException(403, "The token is for another application.")


app = FastAPI(lifespan=lifespan, dependencies=[Depends(authorized)], openapi_url=None)

API = "/api/v1/applications/{application}"

PageSize = Annotated[int, Query(ge=1, le=1000)]
Page = Annotated[int, Query(ge=1)]


class Pair(BaseModel):
    """A question: is this profile in this group."""

    profile_id: UUID
    group_id: UUID


class Pairs(BaseModel):
    """The questions of one check."""

    pairs: Annotated[list[Pair], Field(max_length=10_000)]


class Profiles(BaseModel):
    """Profiles to add."""

    profile_ids: Annotated[list[str], Field(max_length=10_000)]


@app.post(API + "/memberships/check/")
async def check(body: Pairs) -> Response:
    """Say of each pair whether the profile is in the group."""
    if len(body.pairs) == 1:
        [pair] = body.pairs
        groups = f"profile:{pair.profile_id}:groups"
        return answer({"results": [bool(await redis.sismember(groups, str(pair.group_id)))]})
    # One command for each group: commands are what costs, here and in the store.
    places: dict[UUID, list[int]] = defaultdict(list)
    for place, pair in enumerate(body.pairs):
        places[pair.group_id].append(place)
    pipeline = redis.pipeline(transaction=False)
    for group, asked in places.items():
        profiles = [str(body.pairs[place].profile_id) for place in asked]
        pipeline.zmscore(f"group:{group}:members", profiles)
    results = [False] * len(body.pairs)
    for asked, scores in zip(places.values(), await pipeline.execute(), strict=True):
        for place, score in zip(asked, scores, strict=True):
            results[place] = score is not None
    return answer({"results": results})


@app.get(API + "/profiles/{profile}/profile-groups/")
async def groups_of_profile(
    request: Request, profile: UUID, page_size: PageSize = 20, page: Page = 1
) -> Response:
    """List the groups that a profile is in, in the order of their creation."""
    groups: list[Any] = list(await redis.smembers(f"profile:{profile}:groups"))
    rows = []
    if groups:
        found: list[Any] = await redis.mget(
            [f"group:{group}" for group in groups] + [f"group:{group}:count" for group in groups]
        )
        for text, count in zip(found[: len(groups)], found[len(groups) :], strict=True):
            group = orjson.loads(text)
            rows.append(
                {
                    "group_id": group["id"],
                    "group_name": group["name"],
                    "profile_count": int(count),
                    "is_active": group["is_active"],
                    "created_at": group["created_at"],
                    "custom_id": group["custom_id"],
                }
            )
        rows.sort(key=lambda row: row["created_at"])
    start = (page - 1) * page_size
    return paged(request, len(rows), rows[start : start + page_size], page, page_size)


@app.get(API + "/profile-groups/{group}/members/")
async def members(
    request: Request, group: UUID, page_size: PageSize = 20, page: Page = 1
) -> Response:
    """List the members of a group, in the order in which they joined."""
    start = (page - 1) * page_size
    pipeline = redis.pipeline(transaction=False)
    pipeline.get(f"group:{group}:count")
    pipeline.zrange(f"group:{group}:members", start, start + page_size - 1, withscores=True)
    count, found = await pipeline.execute()
    if count is None:
        raise HTTPException(404, "There is no such group.")
    rows = [
        {"id": profile, "membership_created_at": timestamp(joined_at_us)}
        for profile, joined_at_us in found
    ]
    return paged(request, int(count), rows, page, page_size)


@app.get(API + "/profile-groups/{group}/")
async def one_group(group: UUID) -> Response:
    """Show a group."""
    found: list[Any] = await redis.mget(f"group:{group}", f"group:{group}:count")
    document, count = found
    if document is None:
        raise HTTPException(404, "There is no such group.")
    return answer(orjson.loads(document) | {"profile_count": int(count)})


@app.post(API + "/profile-groups/{group}/members/")
async def add_members(group: UUID, body: Profiles) -> Response:
    """Add members to a group, and say of each id what became of it."""
    if not await redis.exists(f"group:{group}"):
        raise HTTPException(404, "There is no such group.")
    sent = dict.fromkeys(body.profile_ids)
    valid = [text for text in sent if UUID_TEXT.fullmatch(text)]
    scores: list[float | None] = []
    if valid:
        now_us = time.time_ns() // 1000
        key = f"group:{group}:members"
        profiles = [text.lower() for text in valid]
        # One transaction: who was there before is exact, whoever else adds at the same time.
        pipeline = redis.pipeline(transaction=True)
        pipeline.zmscore(key, profiles)
        pipeline.zadd(key, dict.fromkeys(profiles, now_us), nx=True)
        for profile in profiles:
            pipeline.sadd(f"profile:{profile}:groups", str(group))
        pipeline.eval(COUNTED, 2, key, f"group:{group}:count")
        scores = (await pipeline.execute())[0]
    before = dict(zip(valid, scores, strict=True))
    return answer(
        {
            "successfully_added": [text for text, score in before.items() if score is None],
            "already_added": [text for text, score in before.items() if score is not None],
            "invalid_ids": [text for text in sent if text not in before],
        }
    )


def timestamp(at_us: float) -> str:
    """Write microseconds since 1970 as ISO 8601 in UTC."""
    moment = datetime.fromtimestamp(at_us // 1_000_000, UTC).replace(
        microsecond=int(at_us % 1_000_000), tzinfo=None
    )
    return moment.isoformat(timespec="microseconds") + "Z"


def paged(request: Request, count: int, rows: list[Any], page: int, page_size: int) -> Response:
    """Answer with a page and the URLs of its neighbours."""
    following, previous = page * page_size < count, page > 1
    return answer(
        {
            "count": count,
            "next": str(request.url.include_query_params(page=page + 1)) if following else None,
            "previous": str(request.url.include_query_params(page=page - 1)) if previous else None,
            "results": rows,
        }
    )


def answer(body: object) -> Response:
    """Answer in JSON. Faster than a response model, which would look at everything again."""
    return Response(orjson.dumps(body), media_type="application/json")
