-- Write the document of a new group, its ids, and its indexes KEYS[first..]. Gives the document's
-- version, or an error where an id or the number is in use. Safe to do twice.
--- @include "include/index_group"
--- @include "include/announce"
local function insert_group(group, ids, custom_ids, intents, version, new, first)
  local call = redis.call
  local holder = call('HGET', ids, new.id)
  if holder == new.number then return call('HGET', group, 'version') end
  if holder then return redis.error_reply('TAKEN id') end
  if new.custom_id ~= '' and call('HEXISTS', custom_ids, new.custom_id) == 1 then
    return redis.error_reply('TAKEN custom_id')
  end
  if call('EXISTS', group) == 1 then return redis.error_reply('TAKEN number') end
  call('HSET', group, 'document', new.document, 'version', new.now)
  call('HSET', ids, new.id, new.number)
  if new.custom_id ~= '' then call('HSET', custom_ids, new.custom_id, new.number) end
  index_group(new.number, first, #KEYS - 1)
  if not new.active then call('ZADD', intents, new.now, new.number) end
  announce(version, new.number)
  return new.now
end
