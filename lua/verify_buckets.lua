#!lua flags=no-writes
--[[
What some buckets of identities hold, with the entries of `reserved` that belong to it.

KEYS[1]    reserved  ZSET  open reservations of this slot: bucket and identity -> attempt
KEYS[2]    none      never exists
ARGV[1]    cursor    HSCAN cursor in the first bucket, 0 to begin
ARGV[2]    budget    integer  after about as many identities the step ends
ARGV[3..]  bucket    integer  numbers of buckets; at most 200
Computed   <tag>:identity:<bucket>
Returns    {done, cursor, bucket, identity, value, attempt, ...}: done buckets are finished, cursor
           is where the next one goes on; attempt is the score in `reserved`, or nil
Errors     none
Cost       O(budget), about 2 us each
]]
--- @include "include/tag_of"
local reserved = KEYS[1]
local cursor, budget = ARGV[1], tonumber(ARGV[2])
local buckets = tag_of(reserved) .. ':identity:'
local reply = {0, '0'}
local size = 2
for i = 3, #ARGV do
  if budget <= 0 then break end
  local bucket = ARGV[i]
  local step = redis.call('HSCAN', buckets .. bucket, cursor, 'COUNT', budget)
  local fields = step[2]
  for at = 1, #fields, 2 do
    reply[size + 1] = bucket
    reply[size + 2] = fields[at]
    reply[size + 3] = fields[at + 1]
    reply[size + 4] = redis.call('ZSCORE', reserved, bucket .. ':' .. fields[at])
    size = size + 4
  end
  cursor = tostring(step[1])
  budget = budget - 1 - #fields / 2
  if cursor ~= '0' then
    reply[2] = cursor
    break
  end
  reply[1] = reply[1] + 1
end
return reply
