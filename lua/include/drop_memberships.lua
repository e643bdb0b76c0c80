-- Take ids[1..] (all members) out of a group, both directions; those left without any fact leave
-- group 0. Where the memberships are `derived` they are no facts, and `d` counts them. What `named`
-- (see `named_of`) has of this group and group 0 is noted as changed since `now`; so is, whatever
-- that has, who leaves group 0 and is in a dynamic group yet, by rules that were before. Gives
-- whether anything is. Without `now` nothing is noted.
--- @include "include/static_memberships"
--- @include "include/delete_members"
--- @include "include/mark_memberships"
--- @include "include/mark_unsettled"
local function drop_memberships(tag, group, ids, derived, named, now)
  local call = redis.call
  local leaving, left_over = {}, {}
  for i = 1, #ids do
    local key = tag .. ':m:' .. ids[i]
    local gone = call('HDEL', key, group) == 1
    if derived then
      local left = gone and (tonumber(call('HGET', key, 'd') or '0') or 0) - 1
      if left and left > 0 then
        call('HSET', key, 'd', left)
      elseif left then
        call('HDEL', key, 'd')
      end
    elseif static_memberships(key) == 0
      and call('EXISTS', tag .. ':profile:' .. ids[i]) == 0 then
      leaving[#leaving + 1] = ids[i]
      if call('EXISTS', key) == 1 then left_over[#left_over + 1] = ids[i] end
    end
  end
  delete_members(tag, group, ids)
  delete_members(tag, '0', leaving)
  if not now then return false end
  mark_unsettled(tag, left_over, {'\0' .. '0'}, now)
  local noted = named ~= nil and mark_memberships(tag, group, ids, leaving, named, now)
  return noted or #left_over > 0
end
