#!lua flags=no-writes
--[[
Facts of profiles from which something follows, and what follows as their own slot has it.

KEYS[1]    erasing   SET   profiles being erased
KEYS[2]    dirty     ZSET  profiles whose derived data is behind
KEYS[3]    none      never exists
ARGV[1]    budget    integer  after about as many KiB the step ends
ARGV[2]    count     integer  how many names follow
ARGV[3..]  name      names of attributes, then mixed ids; at most 200 of these
Computed   <tag>:profile:<id>, <tag>:attributes:<id>, <tag>:instances:<id>
Returns    a list per id, of the first ones: {state, seq, mpid, values, instances}. State is E being
           erased, D behind, R neither, - no record; values as they are held, nil without one;
           instances and what it is told of each, alternating
Errors     none
Cost       O(ids x names + budget), about 2 us each
]]
--- @include "include/tag_of"
local erasing, dirty = KEYS[1], KEYS[2]
local budget, count = 1024 * tonumber(ARGV[1]), tonumber(ARGV[2])
local call = redis.call
local tag = tag_of(erasing)
local names = {}
for i = 1, count do names[i] = ARGV[2 + i] end
local reply = {}
for i = 3 + count, #ARGV do
  if budget <= 0 then break end
  local id = ARGV[i]
  local record = call('HMGET', tag .. ':profile:' .. id, 'created_at', 'seq', 'mpid')
  local state = record[1] and 'R' or '-'
  if call('SISMEMBER', erasing, id) == 1 then
    state = 'E'
  elseif call('ZSCORE', dirty, id) then
    state = 'D'
  end
  local values = {}
  for at = 1, count, 2000 do
    local part = call('HMGET', tag .. ':attributes:' .. id,
      unpack(names, at, math.min(at + 1999, count)))
    for j = 1, #part do
      values[at + j - 1] = part[j]
      if part[j] then budget = budget - #part[j] end
    end
  end
  local instances = call('HGETALL', tag .. ':instances:' .. id)
  for at = 2, #instances, 2 do budget = budget - #instances[at] end
  reply[#reply + 1] = {state, record[2], record[3], values, instances}
  budget = budget - 64
end
return reply
