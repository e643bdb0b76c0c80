#!lua flags=no-writes
--[[
One bounded step of a walk through the open reservations of a slot, with what their buckets hold.

KEYS[1]    reserved  ZSET  open reservations of this slot: bucket and identity -> attempt
KEYS[2]    none      never exists
ARGV[1]    cursor    ZSCAN cursor, 0 to begin
Computed   <tag>:identity:<bucket>
Returns    {cursor, bucket and identity, attempt, value, ...}: value is what the bucket holds, or
           nil; cursor 0 at the end
Errors     none
Cost       O(200), about 2 us each
]]
--- @include "include/tag_of"
local reserved = KEYS[1]
local buckets = tag_of(reserved) .. ':identity:'
local step = redis.call('ZSCAN', reserved, ARGV[1], 'COUNT', 200)
local reply = {tostring(step[1])}
local size = 1
for at = 1, #step[2], 2 do
  local entry = step[2][at]
  local bucket, identity = string.match(entry, '^(%d+):(.*)$')
  reply[size + 1] = entry
  reply[size + 2] = step[2][at + 1]
  reply[size + 3] = bucket and redis.call('HGET', buckets .. bucket, identity) or false
  size = size + 3
end
return reply
