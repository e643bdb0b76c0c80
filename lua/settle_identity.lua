#!lua flags=allow-oom
--[[
Replace what an identity's bucket holds, if it is still what the caller saw: the third step of
taking an identity, and how one is released.

KEYS[1]    identity  HASH  the identity's bucket
KEYS[2]    reserved  ZSET  open reservations of this slot
KEYS[3]    none      never exists
ARGV[1]    bucket    integer  the bucket's number
ARGV[2]    identity  the identity's field
ARGV[3]    expected  what the caller saw there
ARGV[4]    settled   the mixed id that owns it, and since when; '' removes the identity
Computed   none
Returns    1 where it was replaced, 0 where something else was held
Errors     none
Cost       O(log reservations); safe to send twice
]]
--- @include "include/owner_of"
local key, reserved = KEYS[1], KEYS[2]
local bucket, identity, expected, settled = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local held = redis.call('HGET', key, identity)
if not held or owner_of(held) then redis.call('ZREM', reserved, bucket .. ':' .. identity) end
if held ~= expected then return 0 end
if settled == '' then
  redis.call('HDEL', key, identity)
else
  redis.call('HSET', key, identity, settled)
end
redis.call('ZREM', reserved, bucket .. ':' .. identity)
return 1
