// What LiveLike's published SDK, unchanged, sees of a server: `node livelike.mjs <scenario> <json>`.
// Prints one JSON object. Each scenario is a process of its own, for the SDK keeps its token and the
// application for the life of the process.
import { createRequire } from 'node:module';

const [scenario, given] = process.argv.slice(2);
const { endpoint, clientId, admin, profileToken, groupId } = JSON.parse(given);

// Its paginator is not exported: lists of badges are what walks with it. So the application can be
// given a list of badges that is a list of ours; what the SDK does with the pages is all its own.
// The SDK takes `fetch` when it is loaded.
let badges_url;
const fetched = globalThis.fetch;
globalThis.fetch = async (asked, options) => {
  const answer = await fetched(asked, options);
  if (badges_url === undefined || asked !== `${endpoint}applications/${clientId}/`) return answer;
  return Response.json({ ...(await answer.json()), badges_url });
};
const LiveLike = createRequire(import.meta.url)('@livelike/javascript');

const application = `/applications/${clientId}`;
const auth = admin && LiveLike.createUserProfileAuth(admin);
console.error = () => {}; // The SDK prints every error body.

// How a call ended: what it resolves to, or what it rejects with.
const outcome = async (promise) => {
  try {
    const value = await promise;
    return { resolved: value instanceof Response ? { status: value.status } : value };
  } catch (error) {
    return { rejected: error instanceof Error ? String(error) : error };
  }
};
const init = (options = {}) => LiveLike.init({ clientId, endpoint, ...options });
const asAdmin = async () => {
  await init({ accessToken: admin });
  return LiveLike.request;
};

const scenarios = {
  async initAnonymous() {
    const profile = await init();
    const groups = await LiveLike.request.get({
      path: `${application}/profiles/${profile.id}/profile-groups/`,
    });
    return { profile, groups };
  },

  async initNickname() {
    return { profile: await init({ nickName: 'Zed' }) };
  },

  async initToken() {
    return { profile: await init({ accessToken: profileToken }) };
  },

  async initStored() {
    const kept = { access_token: profileToken };
    const storageStrategy = { get: () => kept, set: (profile) => Object.assign(kept, profile) };
    const profile = await init({ storageStrategy });
    return { profile, kept };
  },

  async initAdmin() {
    return { profile: await init({ accessToken: admin }) };
  },

  async initFails() {
    return {
      badToken: await outcome(init({ accessToken: 'nonsense' })),
      noApplication: await outcome(init({ clientId: 'nobody' })),
    };
  },

  async profile() {
    const me = await init();
    const accessToken = me.access_token;
    const options = { nickname: 'New', custom_data: '{"team":"red"}' };
    return {
      me,
      updated: await LiveLike.updateUserProfile({ accessToken, options }),
      read: await LiveLike.getUserProfile({ accessToken }),
      byId: await LiveLike.getUserProfile({ profileId: me.id }),
      another: await LiveLike.createUserProfile({ nickname: 'Second' }),
      foreign: await outcome(
        LiveLike.request.get({ path: `/profiles/${crypto.randomUUID()}/?client_id=${clientId}` }),
      ),
      groups: await outcome(LiveLike.request.get({ path: `${application}/profile-groups/` })),
    };
  },

  async groups() {
    const request = await asAdmin();
    const path = `${application}/profile-groups/`;
    const values = ['gold', 'k 2:ä', '10:30', "it's", '100%', 'a/b?c', '<">', '日本', '{x}|\\^`'];
    const found = {};
    for (const value of values) {
      const attributes = [{ key: 'tier', value }];
      const data = { name: `Tier ${value}`, is_active: true, description: 'd', attributes };
      const made = await request.post({ path, auth, data });
      const queryParams = { attributes: [`tier:${value}`], page_size: '50', is_active: false };
      const page = await request.get({ path, auth, queryParams });
      found[value] = { id: made.id, page };
    }
    const [first] = Object.values(found);
    const one = `${path}${first.id}/`;
    return {
      found,
      presence: await request.get({ path, auth, queryParams: { attributes: ['tier'] } }),
      changed: await request.patch({ path: one, auth, data: { name: 'Edited' } }),
      replaced: await request.put({ path: one, auth, data: { name: 'Put', description: 'p' } }),
      removed: await outcome(request.delete({ path: one.slice(0, -1), auth })),
      gone: await outcome(request.get({ path: one, auth })),
    };
  },

  // The rule tree is the one of LiveLike's documents, with its commas mended.
  async dynamic() {
    const request = await asAdmin();
    const path = `${application}/profile-groups/`;
    const comments = { attribute: 'total_comments_posted', condition: 'greater_than', value: 10 };
    const commented = { attribute: 'has_ever_commented', condition: 'is', value: true };
    const any = { operator: 'OR', children: [comments, commented] };
    const rule_tree = { operator: 'AND', children: [any] };
    const data = { name: 'Commenters', membership_type: 'dynamic', rule_tree };
    const made = await request.post({ path, auth, data });
    const one = `${path}${made.id}/`;
    const people = [];
    for (const [key, value] of [['total_comments_posted', '11'], ['has_ever_commented', 'TRUE']]) {
      const person = await LiveLike.createUserProfile({});
      const attributes = [{ key, value }];
      const profile = `/profiles/${person.id}/?client_id=${clientId}`;
      await request.patch({ path: profile, auth, data: { attributes } });
      people.push(person.id);
    }
    const profile_ids = [crypto.randomUUID()];
    const isDynamic = { queryParams: { membership_type: 'dynamic' } };
    return {
      rule_tree,
      made,
      people,
      members: await request.get({ path: `${one}members/`, auth }),
      groupsOfOne: await request.get({
        path: `${application}/profiles/${people[0]}/profile-groups/`,
        auth,
      }),
      listed: await request.get({ path, auth, ...isDynamic }),
      added: await outcome(
        request.post({ path: `${one}members/`, auth, data: { profile_ids } }),
      ),
      changed: await request.patch({ path: one, auth, data: { rule_tree: comments } }),
      malformed: await outcome(
        request.patch({ path: one, auth, data: { rule_tree: { operator: 'AND', children: [] } } }),
      ),
    };
  },

  async create() {
    const request = await asAdmin();
    return request.post({ path: `${application}/profile-groups/`, auth, data: { name: 'Group' } });
  },

  async members() {
    badges_url = `${endpoint}applications/${clientId}/profile-groups/${groupId}/members/?page_size=2`;
    const request = await asAdmin();
    const ids = Array.from({ length: 5 }, () => crypto.randomUUID());
    const path = `${application}/profile-groups/${groupId}/members/`;
    const added = await request.post({ path, auth, data: { profile_ids: ids } });
    const again = await request.post({ path, auth, data: { profile_ids: ids } });
    const first = await LiveLike.getApplicationBadges();
    const walked = [...first.results];
    const counts = [first.count];
    for (let done = first.done; !done; ) {
      const page = await first.next();
      walked.push(...page.value.results);
      counts.push(page.value.count);
      done = page.done;
    }
    const back = await first.previous();
    return { ids, added, again, walked, counts, back: back.value.results, end: await first.next() };
  },

  async removals() {
    const request = await asAdmin();
    const path = `${application}/profile-groups/${groupId}/members/`;
    const json = { 'Content-Type': 'application/json' };
    const ways = {
      object: (data) => ({ data }),
      objectAsJson: (data) => ({ data, headers: json }),
      text: (data) => ({ data: JSON.stringify(data) }),
      textAsJson: (data) => ({ data: JSON.stringify(data), headers: json }),
    };
    const outcomes = {};
    for (const [way, options] of Object.entries(ways)) {
      const id = crypto.randomUUID();
      const data = { profile_ids: [id] };
      await request.post({ path, auth, data });
      const removed = await outcome(request.delete({ path, auth, ...options(data) }));
      const left = await outcome(request.get({ path: `${path}${id}/`, auth }));
      outcomes[way] = { removed, left: 'resolved' in left };
    }
    return outcomes;
  },

  async errors() {
    const request = await asAdmin();
    const path = `${application}/profile-groups/`;
    const data = { name: 'One', custom_id: 'taken' };
    await request.post({ path, auth, data });
    return {
      400: await outcome(request.post({ path, auth, data: { description: 'no name' } })),
      401: await outcome(request.get({ path, auth: '' })),
      403: await outcome(request.get({ path: '/applications/other/profile-groups/', auth })),
      404: await outcome(request.get({ path: `${path}${crypto.randomUUID()}/`, auth })),
      405: await outcome(request.put({ path, auth, data })),
      409: await outcome(request.post({ path, auth, data })),
      413: await outcome(request.post({ path, auth, data: { name: 'x'.repeat(9 << 20) } })),
      415: await outcome(
        request.post({
          path,
          auth,
          data: JSON.stringify(data),
          headers: { 'Content-Type': 'application/json', 'Content-Encoding': 'gzip' },
        }),
      ),
      noRoute: await outcome(request.get({ path: `${application}/nothing/`, auth })),
      malformed: await outcome(
        request.delete({ path: `${path}taken/members/`, auth, data: '{"profile_ids":["x"]}' }),
      ),
    };
  },
};

process.stdout.write(JSON.stringify(await scenarios[scenario]()));
process.exit(0); // The SDK may leave timers.
