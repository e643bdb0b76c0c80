// What mParticle's published Node SDK, unchanged, sees of a server: `node mparticle.mjs <scenario>
// <json>`. Prints one JSON object: per call, the status and body it resolved to, or its error.
import { createRequire } from 'node:module';

const [scenario, given] = process.argv.slice(2);
const { host, key, secret } = JSON.parse(given);
const mparticle = createRequire(import.meta.url)('mparticle');

const api = (basePath = host, login = [key, secret]) => {
  const client = new mparticle.ApiClient();
  client.basePath = basePath;
  return new mparticle.EventsApi(new mparticle.Configuration(...login), client);
};
const call = (method, body, of = api()) =>
  new Promise((resolve) => {
    of[method](body, (error, data, response) => {
      if (error) resolve({ error: error.status, body: error.response?.body });
      else resolve({ status: response.status, text: response.text });
    });
  });
const batch = (customerid, attributes, more = {}) => {
  const made = new mparticle.Batch(mparticle.Batch.Environment.production);
  made.user_identities = new mparticle.UserIdentities();
  made.user_identities.customerid = customerid;
  made.user_identities.email = `${customerid}@example.com`;
  if (attributes) made.user_attributes = attributes;
  return Object.assign(made, more);
};

const scenarios = {
  async single() {
    const sent = batch('node-single', {
      $Address: '1 Node St', has_dog: true, points: 12, weight: 1.5, tags: ['a', 'b'], nothing: null,
    });
    const kind = mparticle.AppEvent.CustomEventType.navigation;
    sent.addEvent(new mparticle.AppEvent(kind, 'Hello World'));
    return { done: await call('uploadEvents', sent) };
  },
  async household() {
    const address = { $address: '2 Node St' };
    const moved = { deleted_user_attributes: ['has_dog'] };
    return {
      done: await call('bulkUploadEvents', [
        batch('node-john', address),
        batch('node-jane', { ...address, has_dog: true }),
        batch('node-bob', { $address: '3 Node St' }, moved),
      ]),
    };
  },
  async errors() {
    const many = Array.from({ length: 101 }, (_, n) => batch(`node-${n}`));
    return {
      many: await call('bulkUploadEvents', many),
      none: await call('bulkUploadEvents', []),
      nobody: await call('uploadEvents', new mparticle.Batch('production')),
      nested: await call('uploadEvents', batch('node-nested', { a: { b: 1 } })),
      wrong: await call('uploadEvents', batch('node-wrong'), api(host, [key, 'wrong'])),
      anonymous: await call('uploadEvents', batch('node-anon'), api(host, ['', ''])),
    };
  },
  async hosts() {
    const base = host.replace(/\/v2$/, '');
    const sent = (n) => batch(`node-host-${n}`, { n });
    return {
      slash: await call('uploadEvents', sent(1), api(`${host}/`)),
      short: await call('bulkUploadEvents', [sent(2)], api(base)),
    };
  },
};

console.log(JSON.stringify(await scenarios[scenario]()));
