#!lua flags=no-writes
--[[
One bounded step of a walk through buckets of instances.

KEYS[1]    stale     ZSET  instances whose members are not yet told
KEYS[2]    none      never exists
ARGV[1]    cursor    ZSCAN cursor in the first bucket, 0 to begin
ARGV[2]    budget    integer  after about as many entries the step ends
ARGV[3..]  bucket    numbers of the definition and of the bucket, joined by a colon; at most 200
Computed   <tag>:index:<number>:<bucket>, <tag>:instance:<iid>
Returns    {done, cursor, bucket, instance, score, number, ...}: done buckets are finished, cursor
           is where the next one goes on; number is that of the instance's definition, nil where
           there is no instance
Errors     none
Cost       O(budget), about 1 us each
]]
--- @include "include/tag_of"
local cursor, budget = ARGV[1], tonumber(ARGV[2])
local call = redis.call
local tag = tag_of(KEYS[1])
local reply = {0, '0'}
local size = 2
for i = 3, #ARGV do
  if budget <= 0 then break end
  local step = call('ZSCAN', tag .. ':index:' .. ARGV[i], cursor, 'COUNT', budget)
  local entries = step[2]
  for at = 1, #entries, 2 do
    reply[size + 1] = ARGV[i]
    reply[size + 2] = entries[at]
    reply[size + 3] = entries[at + 1]
    reply[size + 4] = call('HGET', tag .. ':instance:' .. entries[at], 'number')
    size = size + 4
  end
  budget = budget - 1 - #entries / 2
  cursor = tostring(step[1])
  if cursor ~= '0' then
    reply[2] = cursor
    break
  end
  reply[1] = reply[1] + 1
end
return reply
