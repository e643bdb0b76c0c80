// A peer of Belong: memberships in Redis, as somebody would write them with Fastify.
//
// Stands alone. README.md beside this folder says what it does and does not do. In the store:
//
//     group:{id}             a JSON document
//     group:{id}:count       how many members it has
//     group:{id}:members     a sorted set: profile ids by the microsecond in which they joined
//     profile:{id}:groups    a set of group ids

import Fastify from "fastify";
import { Redis } from "ioredis";

const { PEER_TOKEN, PEER_APPLICATION, PEER_REDIS, PEER_PORT } = process.env;

// Token -> the application that it is good for.
const tokens = new Map([[PEER_TOKEN, PEER_APPLICATION]]);

// What is asked for in one turn of the event loop leaves as one pipeline.
const redis = new Redis({ path: PEER_REDIS, enableAutoPipelining: true });

// A transaction cannot use what its own commands answer: a script can.
const COUNTED = "redis.call('SET', KEYS[2], redis.call('ZCARD', KEYS[1]))";

const app = Fastify({ bodyLimit: 8 * 1024 * 1024, routerOptions: { ignoreTrailingSlash: true } });

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;
const uuid = { type: "string", pattern: UUID.source.replaceAll("a-f", "a-fA-F") };
const text = { type: "string" };
const maybe = { type: "string", nullable: true };
const integer = { type: "integer" };
const list = (items) => ({ type: "array", items });
const object = (properties) => ({
  type: "object",
  properties,
  required: Object.keys(properties),
});

const paging = {
  type: "object",
  properties: {
    page_size: { type: "integer", minimum: 1, maximum: 1000, default: 20 },
    page: { type: "integer", minimum: 1, default: 1 },
  },
};

const pageOf = (row) => ({
  200: object({ count: integer, next: maybe, previous: maybe, results: list(object(row)) }),
});

const notFound = () => Object.assign(new Error("There is no such group."), { statusCode: 404 });

function timestamp(atUs) {
  const us = String(atUs % 1_000_000).padStart(6, "0");
  return `${new Date(Math.floor(atUs / 1000)).toISOString().slice(0, 19)}.${us}Z`;
}

function paged(request, count, results) {
  const { page, page_size } = request.query;
  const link = (number) => {
    const url = new URL(request.url, `${request.protocol}://${request.host}`);
    url.searchParams.set("page", number);
    return url.href;
  };
  return {
    count,
    next: page * page_size < count ? link(page + 1) : null,
    previous: page > 1 ? link(page - 1) : null,
    results,
  };
}

app.addHook("onRequest", (request, reply, done) => {
  const [scheme, token] = (request.headers.authorization ?? "").split(" ", 2);
  if (scheme.toLowerCase() !== "bearer" || !tokens.has(token)) {
    reply.code(401);
    done(new Error("Send Authorization: Bearer <token>."));
  } else if (tokens.get(token) !== request.params.application) {
    reply.code(403);
    done(new Error("The token is for another application."));
  } else {
    done();
  }
});

async function isMember({ profile_id, group_id }) {
  const groups = `profile:${profile_id.toLowerCase()}:groups`;
  return (await redis.sismember(groups, group_id.toLowerCase())) === 1;
}

app.register(
  async (api) => {
    api.post(
      "/memberships/check/",
      {
        schema: {
          body: object({
            pairs: { ...list(object({ profile_id: uuid, group_id: uuid })), maxItems: 10_000 },
          }),
          response: { 200: object({ results: list({ type: "boolean" }) }) },
        },
      },
      async (request) => {
        const { pairs } = request.body;
        if (pairs.length === 1) return { results: [await isMember(pairs[0])] };
        // One command for each group: commands are what costs, here and in the store.
        const places = new Map();
        pairs.forEach(({ group_id }, place) => {
          const group = group_id.toLowerCase();
          const asked = places.get(group);
          if (asked) asked.push(place);
          else places.set(group, [place]);
        });
        const commands = Array.from(places, ([group, asked]) => [
          "zmscore",
          `group:${group}:members`,
          ...asked.map((place) => pairs[place].profile_id.toLowerCase()),
        ]);
        const replies = await redis.pipeline(commands).exec();
        const results = new Array(pairs.length);
        let reply = 0;
        for (const asked of places.values()) {
          const [error, scores] = replies[reply++];
          if (error) throw error;
          asked.forEach((place, at) => {
            results[place] = scores[at] !== null;
          });
        }
        return { results };
      },
    );

    api.get(
      "/profiles/:profile/profile-groups/",
      {
        schema: {
          params: { type: "object", properties: { profile: uuid } },
          querystring: paging,
          response: pageOf({
            group_id: text,
            group_name: text,
            profile_count: integer,
            is_active: { type: "boolean" },
            created_at: text,
            custom_id: maybe,
          }),
        },
      },
      async (request) => {
        const ids = await redis.smembers(`profile:${request.params.profile.toLowerCase()}:groups`);
        if (ids.length === 0) return paged(request, 0, []);
        const found = await redis.mget([
          ...ids.map((id) => `group:${id}`),
          ...ids.map((id) => `group:${id}:count`),
        ]);
        const rows = ids.map((_, place) => {
          const group = JSON.parse(found[place]);
          return {
            group_id: group.id,
            group_name: group.name,
            profile_count: Number(found[ids.length + place]),
            is_active: group.is_active,
            created_at: group.created_at,
            custom_id: group.custom_id,
          };
        });
        rows.sort((one, other) => (one.created_at < other.created_at ? -1 : 1));
        const { page, page_size } = request.query;
        return paged(request, rows.length, rows.slice((page - 1) * page_size, page * page_size));
      },
    );

    const oneGroup = { params: { type: "object", properties: { group: uuid } } };

    api.get(
      "/profile-groups/:group/members/",
      {
        schema: {
          ...oneGroup,
          querystring: paging,
          response: pageOf({ id: text, membership_created_at: text }),
        },
      },
      async (request) => {
        const group = `group:${request.params.group.toLowerCase()}`;
        const { page, page_size } = request.query;
        const [count, found] = await Promise.all([
          redis.get(`${group}:count`),
          redis.zrange(
            `${group}:members`,
            (page - 1) * page_size,
            page * page_size - 1,
            "WITHSCORES",
          ),
        ]);
        if (count === null) throw notFound();
        const rows = [];
        for (let at = 0; at < found.length; at += 2) {
          rows.push({ id: found[at], membership_created_at: timestamp(Number(found[at + 1])) });
        }
        return paged(request, Number(count), rows);
      },
    );

    api.get(
      "/profile-groups/:group/",
      {
        schema: {
          ...oneGroup,
          response: {
            200: object({
              id: text,
              name: text,
              is_active: { type: "boolean" },
              description: maybe,
              profile_count: integer,
              custom_id: maybe,
              created_at: text,
              attributes: list(object({ key: text, value: text })),
              membership_type: text,
            }),
          },
        },
      },
      async (request) => {
        const group = `group:${request.params.group.toLowerCase()}`;
        const [document, count] = await redis.mget(group, `${group}:count`);
        if (document === null) throw notFound();
        return { ...JSON.parse(document), profile_count: Number(count) };
      },
    );

    api.post(
      "/profile-groups/:group/members/",
      {
        schema: {
          ...oneGroup,
          body: object({ profile_ids: { ...list(text), maxItems: 10_000 } }),
          response: {
            200: object({
              successfully_added: list(text),
              already_added: list(text),
              invalid_ids: list(text),
            }),
          },
        },
      },
      async (request) => {
        const group = request.params.group.toLowerCase();
        if (!(await redis.exists(`group:${group}`))) throw notFound();
        const told = { successfully_added: [], already_added: [], invalid_ids: [] };
        const valid = [];
        for (const id of new Set(request.body.profile_ids)) {
          (UUID.test(id) ? valid : told.invalid_ids).push(id);
        }
        if (valid.length === 0) return told;
        const key = `group:${group}:members`;
        const nowUs = Date.now() * 1000;
        const profiles = valid.map((id) => id.toLowerCase());
        // One transaction: who was there before is exact, whoever else adds at the same time.
        const transaction = redis
          .multi()
          .zmscore(key, ...profiles)
          .zadd(key, "NX", ...profiles.flatMap((id) => [nowUs, id]));
        for (const id of profiles) transaction.sadd(`profile:${id}:groups`, group);
        transaction.eval(COUNTED, 2, key, `group:${group}:count`);
        const replies = await transaction.exec();
        for (const [error] of replies) if (error) throw error;
        const [[, scores]] = replies;
        valid.forEach((id, place) =>
          (scores[place] === null ? told.successfully_added : told.already_added).push(id),
        );
        return told;
      },
    );
  },
  { prefix: "/api/v1/applications/:application" },
);

for (const signal of ["SIGINT", "SIGTERM"]) {
  process.on(signal, async () => {
    await app.close();
    redis.disconnect();
  });
}

await app.listen({ host: "127.0.0.1", port: Number(PEER_PORT) });
