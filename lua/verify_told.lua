#!lua flags=no-writes
--[[
What profiles are told of instances.

KEYS[1]    erasing   SET   profiles being erased
KEYS[2]    none      never exists
ARGV[1]    budget    integer  after about as many KiB the step ends
ARGV[2..]  instance and mixed id, alternating; at most 200 of each
Computed   <tag>:instances:<id>
Returns    {erasing, told, ...} of the first ones: erasing is 1 or 0; told as it is held, nil where
           the instance is not listed
Errors     none
Cost       O(pairs + budget), about 1 us each
]]
--- @include "include/tag_of"
local erasing = KEYS[1]
local call = redis.call
local tag = tag_of(erasing)
local budget = 1024 * tonumber(ARGV[1])
local reply = {}
local size = 0
for i = 2, #ARGV, 2 do
  if budget <= 0 then break end
  local told = call('HGET', tag .. ':instances:' .. ARGV[i + 1], ARGV[i])
  reply[size + 1] = call('SISMEMBER', erasing, ARGV[i + 1])
  reply[size + 2] = told
  size = size + 2
  budget = budget - 64 - (told and #told or 0)
end
return reply
