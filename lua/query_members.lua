#!lua flags=no-writes
--[[
Which profiles of this partition a query over groups holds of, of those whose h is in a range, or of
some of them.

KEYS[1]    state     HASH  state of groups in this partition
KEYS[2]    shape     HASH  segments of groups in this partition
KEYS[3]    none      never exists
ARGV[1]    from      integer  the range of h: [from, to)
ARGV[2]    to        integer
ARGV[3]    most      integer  give ids where there are no more than these
ARGV[4]    tally     0 or 1: give also how many of the query's children hold of each
ARGV[5]    within    packed mixed ids in the range, ascending: only these are asked; '': everybody
ARGV[6..]  program   the query in prefix notation: a number is a group (0: everybody), ! negates
           what follows, &3 is true where all of the next three are, |3 where one is, and #2 3 where
           two of the next three are. What leaves fewer comes first. At most 100 groups
Computed   <tag>:g:<group>:<depth>:<prefix>, <tag>:m:<id>
Returns    {cost, count, ids, tallies}: what it cost by the figures below, in us; how many there
           are; packed mixed ids, '' where there are more than `most`; a number for each, with
           blanks between them
Errors     INACTIVE  a group is inactive: its number follows
           DELETED   a group is deleted: its number follows
Cost       O(members of the groups that have to be listed in the range + candidates x groups)
]]
--- @include "include/tag_of"
--- @include "include/list_range"
local state, shape = KEYS[1], KEYS[2]
local from, to, most, tallied = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local packed = ARGV[5]
local call, byte, sub = redis.call, string.byte, string.sub
local tag = tag_of(state)
local memberships = tag .. ':m:'
-- The same figures as in the plan, in us: the first segment of a group, a further one, a listed id,
-- asking about one group, and about a further one.
local LOOK, CALL, LISTED, PROBED, FIELD = 6, 2.5, 0.3, 2.4, 0.5
local part = (to - from) / 4294967296
local cost = 0

local at, groups, leaves = 6, {}, {}
local function parse()
  local token = ARGV[at]
  at = at + 1
  local kind = byte(token)
  local node = {}
  if kind == 33 then
    node[1], node.kind = parse(), 'not'
  elseif kind == 38 or kind == 124 or kind == 35 then
    node.kind = kind == 38 and 'and' or 'some'
    local least, size = string.match(token, '^#(%d+) (%d+)$')
    size = tonumber(size or sub(token, 2))
    node.least = tonumber(least or '1')
    for i = 1, size do
      node[i] = parse()
    end
  else
    node.kind, node.group = 'group', token
    groups[#groups + 1] = token
    leaves[#leaves + 1] = node
  end
  return node
end
local query = parse()

local states = call('HMGET', state, unpack(groups))
for i = 1, #groups do
  local letter = states[i] and sub(states[i], -1) or 'a'
  if letter == 'i' then return redis.error_reply('INACTIVE ' .. groups[i]) end
  if letter ~= 'a' then return redis.error_reply('DELETED ' .. groups[i]) end
end
local shapes = call('HMGET', shape, unpack(groups))
for i = 1, #groups do
  leaves[i].segments = tonumber(shapes[i] or '1')
end
local everybody = {kind = 'group', group = '0'}
local function segments_of_everybody()
  everybody.segments = everybody.segments or tonumber(call('HGET', shape, '0') or '1')
  return everybody
end

-- A list of ids knows which ids it has, once that was asked.
local function set_of(ids)
  local has = ids.has
  if not has then
    has = {}
    for i = 1, #ids do
      has[ids[i]] = true
    end
    ids.has = has
  end
  return has
end

local function list(leaf)
  local ids, looked_at = list_range(tag, leaf.group, leaf.segments, from, to)
  cost = cost + LOOK + CALL * (looked_at - 1) + LISTED * #ids
  return ids
end

local function cost_of_listing(leaf)
  local segments = leaf.segments * part
  return LOOK + (CALL + LISTED * 40) * segments
end

-- The members of a group, all in the range or those among some ids.
local function members(leaf, within)
  if not within then return list(leaf) end
  local found = {}
  if #within == 0 then return found end
  if PROBED * #within <= cost_of_listing(leaf) then
    cost = cost + PROBED * #within
    for i = 1, #within do
      local id = within[i]
      if call('HEXISTS', memberships .. id, leaf.group) == 1 then found[#found + 1] = id end
    end
    return found
  end
  local has, ids = set_of(within), list(leaf)
  for i = 1, #ids do
    if has[ids[i]] then found[#found + 1] = ids[i] end
  end
  return found
end

-- How many of a node's groups each of some ids is in, where asking each id once costs less than
-- asking group by group; nil where it does not.
local function ask_each(node, within)
  local listing = 0
  for i = 1, #node do
    if node[i].kind ~= 'group' then return nil end
    listing = listing + math.min(cost_of_listing(node[i]), PROBED * #within)
  end
  local asking = #within * (PROBED + FIELD * #node)
  if asking >= listing then return nil end
  cost = cost + asking
  local names, times = {}, {}
  for i = 1, #node do
    names[i] = node[i].group
  end
  for i = 1, #within do
    local held, n = call('HMGET', memberships .. within[i], unpack(names)), 0
    for j = 1, #names do
      if held[j] then n = n + 1 end
    end
    times[within[i]] = n
  end
  return times
end

local evaluate
-- The ids that at least `least` of a node's children hold of, and of how many each.
local function some(node, within, least)
  local found, times = {}, within and ask_each(node, within)
  if times then
    for i = 1, #within do
      if times[within[i]] >= least then found[#found + 1] = within[i] end
    end
    return found, times
  end
  times = {}
  -- Whoever is in none of these is in too few of the others.
  local covering = #node - least + 1
  for i = 1, covering do
    local ids = evaluate(node[i], within)
    for j = 1, #ids do
      local id = ids[j]
      local n = times[id]
      if not n then found[#found + 1] = id end
      times[id] = (n or 0) + 1
    end
  end
  if least == 1 then return found, times end
  local pause = math.ceil((least - 1) / 8)
  for i = covering + 1, #node do
    local ids = evaluate(node[i], found)
    for j = 1, #ids do
      times[ids[j]] = times[ids[j]] + 1
    end
    if (i - covering) % pause == 0 or i == #node then
      local missing, left = least - (#node - i), {}
      for j = 1, #found do
        if times[found[j]] >= missing then left[#left + 1] = found[j] end
      end
      found = left
      if #found == 0 then break end
    end
  end
  return found, times
end

evaluate = function(node, within)
  if node.kind == 'group' then return members(node, within) end
  if node.kind == 'some' then return (some(node, within, node.least)) end
  if node.kind == 'and' then
    for i = 1, #node do
      within = evaluate(node[i], within)
      if #within == 0 then break end
    end
    return within
  end
  within = within or list(segments_of_everybody())
  local inside, found = set_of(evaluate(node[1], within)), {}
  for i = 1, #within do
    if not inside[within[i]] then found[#found + 1] = within[i] end
  end
  return found
end

local asked
if packed ~= '' then
  asked = {}
  for i = 1, #packed, 16 do
    asked[#asked + 1] = sub(packed, i, i + 15)
  end
end
local found, times
if tallied == '1' then
  found, times = some(query, asked, 1)
else
  found = evaluate(query, asked)
end
if #found > most then return {math.ceil(cost), #found, '', ''} end
local tallies = {}
if times then
  for i = 1, #found do
    tallies[i] = times[found[i]]
  end
end
return {math.ceil(cost), #found, table.concat(found), table.concat(tallies, ' ')}
