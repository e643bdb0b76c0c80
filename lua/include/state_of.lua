-- The state of a group as this partition knows it: a active, i inactive, d or g deleted. Absent
-- means active.
local function state_of(state, group)
  local value = redis.call('HGET', state, group)
  return value and string.sub(value, -1) or 'a'
end
