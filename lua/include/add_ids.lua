-- Add profiles (packed mixed ids, ascending, none twice) to a group that is active, both
-- directions; one that had no fact before enters group 0. With `recorded`, only those that have a
-- record. Appends a letter per id to `outcome`: + added, = already a member, L over the limit of
-- groups, U unknown and not to be added, E being erased. `named` is what rules name of this group
-- and group 0, see `named_of`. Gives whether anything has yet to follow from these memberships.
--- @include "include/count_existing"
--- @include "include/insert_members"
--- @include "include/mark_memberships"
--- @include "include/any_unsettled"
local function add_ids(tag, group, packed, joined_at, limit, recorded, some_erasing, named, outcome)
  local call, sub = redis.call, string.sub
  local memberships, profiles = tag .. ':m:', tag .. ':profile:'
  local ids, keys, records = {}, {}, {}
  for i = 1, #packed / 16 do
    local id = sub(packed, i * 16 - 15, i * 16)
    ids[i] = id
    keys[i] = memberships .. id
  end
  -- PERF: where nobody has anything yet, and nobody a record, one command each says so. Whoever
  -- comes first stands for what the others are like.
  local some_held = #ids == 1 or call('EXISTS', keys[1]) == 1 or count_existing(keys) > 0
  local some_recorded = true
  if not some_held then
    for i = 1, #ids do records[i] = profiles .. ids[i] end
    some_recorded = count_existing(records) > 0
  end
  local fresh, entering, held_before, writes = {}, {}, {}, {}
  for i = 1, #ids do
    local id = ids[i]
    local letter = '+'
    if some_erasing and call('SISMEMBER', tag .. ':erasing', id) == 1 then
      letter = 'E'
    else
      local static = 0
      if some_held then
        local key = keys[i]
        static = call('HLEN', key)
        if static > 0 then
          local held = call('HMGET', key, group, 'd')
          if held[2] then static = static - 1 - tonumber(held[2]) end
          if held[1] then
            letter = '='
            if named then held_before[#held_before + 1] = id end
          end
        end
      end
      if letter == '+' then
        local known = static > 0
        if recorded or not known then
          known = some_recorded and call('EXISTS', profiles .. id) == 1
        end
        if recorded and not known then
          letter = 'U'
        elseif static >= limit then
          letter = 'L'
        else
          fresh[#fresh + 1] = id
          writes[#writes + 1] = keys[i]
          if static == 0 and not known then entering[#entering + 1] = id end
        end
      end
    end
    outcome[#outcome + 1] = letter
  end
  for i = 1, #writes do
    call('HSET', writes[i], group, joined_at)
  end
  insert_members(tag, group, fresh)
  insert_members(tag, '0', entering)
  if not named then return false end
  if mark_memberships(tag, group, fresh, entering, named, joined_at) then return true end
  -- Whoever repeats what broke off before it could be followed finds them to be members.
  return any_unsettled(tag, held_before)
end
