-- Take profiles (packed mixed ids, none twice) out of a group that is active, both directions; one
-- left without any fact leaves group 0. Appends a letter per id to `outcome`: - removed, . was no
-- member, E being erased. `named` is what rules name of this group and group 0, see `named_of`.
-- Gives whether anything has yet to follow.
--- @include "include/drop_memberships"
--- @include "include/any_unsettled"
local function remove_ids(tag, group, packed, some_erasing, named, now, outcome)
  local call, sub = redis.call, string.sub
  local members, others = {}, {}
  for i = 1, #packed, 16 do
    local id = sub(packed, i, i + 15)
    local letter = '.'
    if some_erasing and call('SISMEMBER', tag .. ':erasing', id) == 1 then
      letter = 'E'
    elseif call('HEXISTS', tag .. ':m:' .. id, group) == 1 then
      letter = '-'
      members[#members + 1] = id
    elseif named then
      others[#others + 1] = id
    end
    outcome[#outcome + 1] = letter
  end
  if drop_memberships(tag, group, members, false, named, now) then return true end
  -- Whoever repeats what broke off before it could be followed finds them gone.
  return named ~= nil and any_unsettled(tag, others)
end
