-- Replace a group's document, its custom id and its indexes, if nobody changed it since it was
-- read: of KEYS[first..] it leaves the first `new.leaving`, and enters the others. Gives the new
-- version, or an error.
--- @include "include/raised"
--- @include "include/index_group"
--- @include "include/announce"
local function replace_group(group, custom_ids, intents, version, new, first)
  local call = redis.call
  local number, custom_id = new.number, new.custom_id
  local held = call('HGET', group, 'version')
  if held ~= new.expected then return redis.error_reply('STALE group ' .. number) end
  if custom_id ~= '' and custom_id ~= new.old_custom_id
    and call('HEXISTS', custom_ids, custom_id) == 1 then
    return redis.error_reply('TAKEN custom_id')
  end
  local new_version = raised(held, new.now)
  call('HSET', group, 'document', new.document, 'version', new_version)
  if custom_id ~= new.old_custom_id then
    if new.old_custom_id ~= '' then call('HDEL', custom_ids, new.old_custom_id) end
    if custom_id ~= '' then call('HSET', custom_ids, custom_id, number) end
  end
  for i = first, first - 1 + new.leaving do
    call('ZREM', KEYS[i], number)
  end
  index_group(number, first + new.leaving, #KEYS - 1)
  if new.switched then call('ZADD', intents, new_version, number) end
  announce(version, number)
  return new_version
end
