#!lua flags=allow-oom
--[[
Take an identity away from a profile, if it resolves to it or is reserved by it.

KEYS[1]    identity  HASH  the identity's bucket
KEYS[2]    reserved  ZSET  open reservations of this slot
KEYS[3]    none      never exists
ARGV[1]    bucket    integer  the bucket's number
ARGV[2]    identity  the identity's field
ARGV[3]    id        mixed id
Computed   none
Returns    1 where it was taken away, 0 where it belongs to nobody or another
Errors     none
Cost       O(log reservations); safe to send twice
]]
local key, reserved = KEYS[1], KEYS[2]
local bucket, identity, id = ARGV[1], ARGV[2], ARGV[3]
local held = redis.call('HGET', key, identity)
if not held or string.sub(held, 1, 16) ~= id then return 0 end
redis.call('HDEL', key, identity)
redis.call('ZREM', reserved, bucket .. ':' .. identity)
return 1
