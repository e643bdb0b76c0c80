-- The error reply for members of a group that is inactive or deleted here, else nil. With
-- `also_inactive` an inactive one will do.
--- @include "include/state_of"
local function require_active(state, group, also_inactive)
  local letter = state_of(state, group)
  if letter == 'a' or (also_inactive and letter == 'i') then return nil end
  if letter == 'i' then return redis.error_reply('INACTIVE Not found.') end
  return redis.error_reply('DELETED Not found.')
end
