-- Take profiles (packed mixed ids, none twice) out of a group that is active, both directions; one
-- left without any fact leaves group 0. Appends a letter per id to `outcome`: - removed, . was no
-- member, E being erased.
--- @include "include/drop_memberships"
local function remove_ids(tag, group, packed, some_erasing, outcome)
  local call, sub = redis.call, string.sub
  local members = {}
  for i = 1, #packed, 16 do
    local id = sub(packed, i, i + 15)
    local letter = '.'
    if some_erasing and call('SISMEMBER', tag .. ':erasing', id) == 1 then
      letter = 'E'
    elseif call('HEXISTS', tag .. ':m:' .. id, group) == 1 then
      letter = '-'
      members[#members + 1] = id
    end
    outcome[#outcome + 1] = letter
  end
  drop_memberships(tag, group, members)
end
