#!lua
--[[
Make `reserved` agree with what an identity's bucket holds.

KEYS[1]    reserved  ZSET  open reservations of this slot: bucket and identity -> attempt
KEYS[2]    none      never exists
ARGV[1]    entry     bucket and identity, as in `reserved`
Computed   <tag>:identity:<bucket>
Returns    1 where it was entered, 0 where it was taken out
Errors     none
Cost       O(log reservations); safe to send twice
]]
--- @include "include/tag_of"
local reserved, entry = KEYS[1], ARGV[1]
local bucket, identity = string.match(entry, '^(%d+):(.*)$')
local held = bucket and redis.call('HGET', tag_of(reserved) .. ':identity:' .. bucket, identity)
local attempt = held and string.match(string.sub(held, 17), '^r(%d+)$')
if attempt then
  redis.call('ZADD', reserved, attempt, entry)
  return 1
end
redis.call('ZREM', reserved, entry)
return 0
