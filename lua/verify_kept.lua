#!lua flags=no-writes
--[[
What is kept of some profiles in one kind of hash. Profiles being erased are passed over.

KEYS[1]    erasing   SET   profiles being erased
KEYS[2]    none      never exists
ARGV[1]    kind      profile or attributes
ARGV[2]    cursor    HSCAN cursor in the hash of the first id, 0 to begin
ARGV[3]    budget    integer  after about as many fields, or KiB, the step ends
ARGV[4..]  id        mixed ids; at most 200
Computed   <tag>:<kind>:<id>
Returns    {done, cursor, id, field, value, ...}: done ids are finished, cursor is where the next
           one goes on
Errors     none
Cost       O(budget), about 2 us each
]]
--- @include "include/tag_of"
local erasing, kind = KEYS[1], ARGV[1]
local cursor, budget = ARGV[2], tonumber(ARGV[3])
local call = redis.call
local hashes = tag_of(erasing) .. ':' .. kind .. ':'
local reply = {0, '0'}
local size = 2
for i = 4, #ARGV do
  if budget <= 0 then break end
  local id = ARGV[i]
  budget = budget - 1
  if call('SISMEMBER', erasing, id) == 0 then
    local step = call('HSCAN', hashes .. id, cursor, 'COUNT', math.ceil(budget))
    local fields = step[2]
    for at = 1, #fields, 2 do
      reply[size + 1] = id
      reply[size + 2] = fields[at]
      reply[size + 3] = fields[at + 1]
      size = size + 3
      budget = budget - 1 - #fields[at + 1] / 1024
    end
    cursor = tostring(step[1])
  else
    cursor = '0'
  end
  if cursor ~= '0' then
    reply[2] = cursor
    break
  end
  reply[1] = reply[1] + 1
end
return reply
