-- Take ids[1..] (all members) out of a group, both directions; those left without any fact leave
-- group 0.
--- @include "include/static_memberships"
--- @include "include/delete_members"
local function drop_memberships(tag, group, ids)
  local leaving = {}
  for i = 1, #ids do
    local key = tag .. ':m:' .. ids[i]
    redis.call('HDEL', key, group)
    if static_memberships(key) == 0 and redis.call('EXISTS', tag .. ':profile:' .. ids[i]) == 0 then
      leaving[#leaving + 1] = ids[i]
    end
  end
  delete_members(tag, group, ids)
  delete_members(tag, '0', leaving)
end
