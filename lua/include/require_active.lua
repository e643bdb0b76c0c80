-- The error reply for members of a group that is inactive or deleted here, else nil. An absent
-- state means active.
local function require_active(state, group)
  local value = redis.call('HGET', state, group)
  if not value then return nil end
  local letter = string.sub(value, -1)
  if letter == 'a' then return nil end
  if letter == 'i' then return redis.error_reply('INACTIVE Not found.') end
  return redis.error_reply('DELETED Not found.')
end
