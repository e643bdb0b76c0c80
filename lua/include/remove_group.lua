-- Remove a group's document, ids and indexes KEYS[first..], if nobody changed it since it was read,
-- and leave the intent to delete its memberships. Gives the version of the deletion, or an error.
--- @include "include/raised"
--- @include "include/announce"
local function remove_group(group, ids, custom_ids, intents, deleting, version, gone, first)
  local call = redis.call
  local number = gone.number
  local held = call('HGET', group, 'version')
  if held ~= gone.expected then return redis.error_reply('STALE group ' .. number) end
  local deleted = raised(held, gone.now)
  call('ZADD', deleting, deleted, number)
  call('DEL', group)
  call('HDEL', ids, gone.id)
  if gone.custom_id ~= '' then call('HDEL', custom_ids, gone.custom_id) end
  for i = first, #KEYS - 1 do
    call('ZREM', KEYS[i], number)
  end
  call('ZREM', intents, number)
  announce(version, number)
  return deleted
end
