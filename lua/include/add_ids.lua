-- Add profiles (packed mixed ids, ascending, none twice) to a group that is active, both
-- directions; one that had no fact before enters group 0. With `recorded`, only those that have a
-- record. Appends a letter per id to `outcome`: + added, = already a member, L over the limit of
-- groups, U unknown and not to be added, E being erased. `named` is what rules name of this group
-- and group 0, see `named_of`. Gives whether anything has yet to follow from these memberships.
--- @include "include/insert_members"
--- @include "include/mark_memberships"
--- @include "include/any_unsettled"
local function add_ids(tag, group, packed, joined_at, limit, recorded, some_erasing, named, outcome)
  local call, sub = redis.call, string.sub
  local memberships = tag .. ':m:'
  local fresh, entering, held_before = {}, {}, {}
  for i = 1, #packed, 16 do
    local id = sub(packed, i, i + 15)
    local letter = '+'
    if some_erasing and call('SISMEMBER', tag .. ':erasing', id) == 1 then
      letter = 'E'
    else
      local key = memberships .. id
      local size = call('HLEN', key)
      local static = size
      if size > 0 then
        local held = call('HMGET', key, group, 'd')
        if held[2] then static = size - 1 - tonumber(held[2]) end
        if held[1] then
          letter = '='
          if named then held_before[#held_before + 1] = id end
        end
      end
      if letter == '+' then
        if recorded and call('EXISTS', tag .. ':profile:' .. id) == 0 then
          letter = 'U'
        elseif static >= limit then
          letter = 'L'
        else
          fresh[#fresh + 1] = id
          if static == 0 and call('EXISTS', tag .. ':profile:' .. id) == 0 then
            entering[#entering + 1] = id
          end
        end
      end
    end
    outcome[#outcome + 1] = letter
  end
  for i = 1, #fresh do
    call('HSET', memberships .. fresh[i], group, joined_at)
  end
  insert_members(tag, group, fresh)
  insert_members(tag, '0', entering)
  if not named then return false end
  if mark_memberships(tag, group, fresh, entering, named, joined_at) then return true end
  -- Whoever repeats what broke off before it could be followed finds them to be members.
  return any_unsettled(tag, held_before)
end
