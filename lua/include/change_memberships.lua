-- Have derived memberships of profiles follow rules, as ARGV[first..] says: each one's mixed id;
-- the seq that was read; 1 where there was any fact, else 0; what it was in of the `groups` that
-- stand before the rows, a 1 or 0 for each (where `groups` is -1: all static ones, with blanks);
-- how many instances follow, each one's id and what was told of it; how many names of changes
-- follow; how many groups follow, each one's number, + or - for whether its rule holds, and when
-- time alone may turn it: '' never, = is left as it is. Rows come ascending. Who has no fact leaves
-- every dynamic group. Nothing is written of a profile whose facts are not those. A letter per
-- profile: + done, S the facts have changed.
--- @include "include/seq_of"
--- @include "include/static_memberships"
--- @include "include/insert_members"
--- @include "include/delete_members"
local function change_memberships(tag, now, hour, ttl, groups, definitions, first)
  local call, match = redis.call, string.match
  local erasing = tag .. ':erasing'
  local leaves, at = {}, first
  for i = 1, groups do leaves[i] = ARGV[at + i - 1] end
  at = at + math.max(groups, 0)
  local wanted = {}
  for i = at, at + definitions - 1 do wanted[ARGV[i]] = true end
  at = at + definitions
  local some_erasing = call('EXISTS', erasing) == 1

  -- What is held of a profile's memberships: of the leaves, of the groups that follow, and `d`.
  local function held_of(id, from, stop)
    local fields, held = {}, {}
    for i = 1, #leaves do fields[i] = leaves[i] end
    for i = from, stop, 3 do fields[#fields + 1] = ARGV[i] end
    fields[#fields + 1] = 'd'
    for i = 1, #fields, 2000 do
      local last = math.min(i + 1999, #fields)
      local values = call('HMGET', tag .. ':m:' .. id, unpack(fields, i, last))
      for j = 1, #values do held[i + j - 1] = values[j] end
    end
    return held
  end

  local function is_in(id, held, read)
    if groups >= 0 then
      for i = 1, groups do
        if (held[i] and 49 or 48) ~= string.byte(read, i) then return false end
      end
      return true
    end
    local numbers = {}
    for number in string.gmatch(read, '%d+') do numbers[#numbers + 1] = number end
    local key = tag .. ':m:' .. id
    if static_memberships(key) ~= #numbers then return false end
    for i = 1, #numbers, 2000 do
      local values = call('HMGET', key, unpack(numbers, i, math.min(i + 1999, #numbers)))
      for j = 1, #values do
        if not values[j] then return false end
      end
    end
    return true
  end

  local function is_told(id, from, stop)
    if definitions == 0 then return true end
    local listed, told = call('HGETALL', tag .. ':instances:' .. id), {}
    local left = 0
    for i = 2, #listed, 2 do
      local number, begins = match(listed[i], '^(%d+) %d+ %d+ ()')
      if wanted[number] and begins <= #listed[i] then
        told[listed[i - 1]] = listed[i]
        left = left + 1
      end
    end
    for i = from, stop, 2 do
      if told[ARGV[i]] ~= ARGV[i + 1] then return false end
      left = left - 1
    end
    return left == 0
  end

  -- All that is compared, before the first write.
  local letters, rows = {}, {}
  while at <= #ARGV do
    local id, seq, fact = ARGV[at], ARGV[at + 1], ARGV[at + 2]
    local instances = at + 5
    local names = instances + 2 * tonumber(ARGV[at + 4]) + 1
    local follow = names + tonumber(ARGV[names - 1]) + 1
    local stop = follow + 3 * tonumber(ARGV[follow - 1]) - 1
    local letter = 'S'
    if seq_of(tag, id) == seq
      and not (some_erasing and call('SISMEMBER', erasing, id) == 1)
      and (seq ~= '' or (static_memberships(tag .. ':m:' .. id) > 0) == (fact == '1'))
      and is_told(id, instances, names - 2) then
      local held = held_of(id, follow, stop)
      if is_in(id, held, ARGV[at + 3]) then
        letter = '+'
        rows[#rows + 1] = {id, names, follow, stop, held, fact == '0'}
      end
    end
    letters[#letters + 1] = letter
    at = stop + 1
  end

  -- Under its sweep nobody is added to a deleted group, and it takes everybody away itself.
  local order, adding, dropping = {}, {}, {}
  local function concerns(group)
    if not adding[group] then
      order[#order + 1] = group
      adding[group], dropping[group] = {}, {}
    end
  end
  for n = 1, #rows do
    for i = rows[n][3], rows[n][4], 3 do concerns(ARGV[i]) end
    if rows[n][6] then
      -- By rules, too, that are none any more: whoever walks group 0 does not come by.
      rows[n][7] = call('HKEYS', tag .. ':m:' .. rows[n][1])
      for _, group in ipairs(rows[n][7]) do
        if group ~= 'd' then concerns(group) end
      end
    end
  end
  local deleted = {}
  for i = 1, #order, 2000 do
    local states = call('HMGET', tag .. ':state', unpack(order, i, math.min(i + 1999, #order)))
    for j = 1, #states do
      local letter = states[j] and string.sub(states[j], -1)
      deleted[order[i + j - 1]] = letter == 'd' or letter == 'g'
    end
  end
  local waking, slept, settled = {}, {}, {}
  for n = 1, #rows do
    local id, names, follow, stop, held, unknown, left_over = unpack(rows[n])
    local key, changed = tag .. ':m:' .. id, tag .. ':changed:' .. id
    local added, dropped = {}, {}
    for i = follow, stop, 3 do
      local group, holds, turns_at = ARGV[i], ARGV[i + 1] == '+', ARGV[i + 2]
      local is_member = held[#leaves + (i - follow) / 3 + 1] ~= false
      if deleted[group] then
        turns_at = ''
      elseif holds and not is_member then
        added[#added + 1] = group
        added[#added + 1] = now
        table.insert(adding[group], id)
      elseif is_member and not holds and not unknown then
        dropped[#dropped + 1] = group
        table.insert(dropping[group], id)
      end
      if turns_at == '' then
        slept[#slept + 1] = id .. group
      elseif turns_at ~= '=' then
        waking[#waking + 1] = turns_at
        waking[#waking + 1] = id .. group
      end
    end
    for i = 1, left_over and #left_over or 0 do
      local group = left_over[i]
      if group ~= 'd' and not deleted[group] then
        dropped[#dropped + 1] = group
        table.insert(dropping[group], id)
      end
    end
    if #added + #dropped > 0 then
      local derived = tonumber(held[#held] or '0') + #added / 2 - #dropped
      if derived > 0 then
        added[#added + 1] = 'd'
        added[#added + 1] = derived
      else
        dropped[#dropped + 1] = 'd'
      end
      for i = 1, #added, 2000 do
        call('HSET', key, unpack(added, i, math.min(i + 1999, #added)))
      end
      for i = 1, #dropped, 2000 do
        call('HDEL', key, unpack(dropped, i, math.min(i + 1999, #dropped)))
      end
    end
    for i = names, follow - 2, 2000 do
      call('SREM', changed, unpack(ARGV, i, math.min(i + 1999, follow - 2)))
    end
    if call('EXISTS', changed) == 0 then settled[#settled + 1] = id end
  end
  for i = 1, #settled, 2000 do
    call('ZREM', tag .. ':unsettled', unpack(settled, i, math.min(i + 1999, #settled)))
  end
  for i = 1, #slept, 2000 do
    call('ZREM', tag .. ':due', unpack(slept, i, math.min(i + 1999, #slept)))
  end
  for i = 1, #waking, 2000 do
    call('ZADD', tag .. ':due', unpack(waking, i, math.min(i + 1999, #waking)))
  end
  local turnover, grown, turned = tag .. ':turnover:' .. hour, {}, false
  for n = 1, #order do
    local group = order[n]
    local added, dropped = #adding[group], #dropping[group]
    if added > 0 then
      grown[#grown + 1] = group
      insert_members(tag, group, adding[group])
      call('HINCRBY', turnover, '+' .. group, added)
    end
    if dropped > 0 then
      delete_members(tag, group, dropping[group])
      call('HINCRBY', turnover, '-' .. group, dropped)
    end
    turned = turned or added + dropped > 0
  end
  for i = 1, #grown, 2000 do
    call('SADD', tag .. ':dynamic', unpack(grown, i, math.min(i + 1999, #grown)))
  end
  if turned then call('EXPIRE', turnover, ttl) end
  return table.concat(letters)
end
