#!lua flags=no-writes
--[[
What rules are to be held against of some profiles: their facts, as far as rules name them, in which
groups they are, and what of it rules have yet to follow.

KEYS[1]    erasing   SET   profiles being erased
KEYS[2]    unsettled ZSET  profiles of which something changed -> since
KEYS[3]    none      never exists
ARGV[1]    budget    integer  after about as many KiB the step ends; a profile counts as 4
ARGV[2]    largest   integer  of a profile with more attributes none are given where all are wanted
ARGV[3]    recordless 1 to pass over profiles that have a record, else 0
ARGV[4]    count     integer  how many names follow; -1: all attributes are wanted
ARGV[5..]  name      names of attributes, then mixed ids; at most 200 of these
Computed   <tag>:profile:<id>, <tag>:attributes:<id>, <tag>:m:<id>, <tag>:instances:<id>,
           <tag>:changed:<id>
Returns    a list per id, of the first ones: {state, values, groups, instances, changed}. State is E
           being erased, P passed over (both without the rest), R a record, S none but a static
           membership, - no fact, L a record and more attributes than are given; values are names
           and what is held, alternating; groups are fields of the memberships; instances and what
           was told of each, alternating; changed are names
Errors     none
Cost       O(ids x names + budget), about 10 us a profile
]]
--- @include "include/tag_of"
--- @include "include/has_fact"
local erasing, unsettled = KEYS[1], KEYS[2]
local budget, largest = 1024 * tonumber(ARGV[1]), tonumber(ARGV[2])
local recordless, count = ARGV[3] == '1', tonumber(ARGV[4])
local call = redis.call
local tag = tag_of(erasing)
local names = {}
for i = 1, count do names[i] = ARGV[4 + i] end
local function values_of(key)
  if count < 0 then return call('HGETALL', key) end
  local values = {}
  for at = 1, count, 2000 do
    local part = call('HMGET', key, unpack(names, at, math.min(at + 1999, count)))
    for j = 1, #part do
      if part[j] then
        values[#values + 1] = names[at + j - 1]
        values[#values + 1] = part[j]
      end
    end
  end
  return values
end
local reply = {}
for i = 5 + math.max(count, 0), #ARGV do
  if budget <= 0 then break end
  local id = ARGV[i]
  local state, values = 'S', {}
  if call('SISMEMBER', erasing, id) == 1 then
    state = 'E'
  elseif call('EXISTS', tag .. ':profile:' .. id) == 1 then
    state = recordless and 'P' or 'R'
    local attributes = tag .. ':attributes:' .. id
    if state == 'R' and count < 0 and call('HLEN', attributes) > largest then
      state = 'L'
    elseif state == 'R' then
      values = values_of(attributes)
    end
  elseif not has_fact(tag, id) then
    state = '-'
  end
  local row = {state}
  if state ~= 'E' and state ~= 'P' then
    local groups = call('HKEYS', tag .. ':m:' .. id)
    local instances = call('HGETALL', tag .. ':instances:' .. id)
    local changed = {}
    if call('ZSCORE', unsettled, id) then changed = call('SMEMBERS', tag .. ':changed:' .. id) end
    for at = 2, #values, 2 do budget = budget - #values[at] end
    for at = 2, #instances, 2 do budget = budget - #instances[at] end
    budget = budget - 4096 - 8 * #groups - 16 * #changed
    row = {state, values, groups, instances, changed}
  end
  reply[#reply + 1] = row
end
return reply
