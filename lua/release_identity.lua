#!lua flags=allow-oom
--[[
Take an identity away from a profile, if it has resolved to it since a moment, or is still reserved
by the attempt that was confirmed then. One that the profile got anew later is left alone: the
caller may be a process that was held up while others finished the work.

KEYS[1]    identity  HASH  the identity's bucket
KEYS[2]    reserved  ZSET  open reservations of this slot
KEYS[3]    none      never exists
ARGV[1]    bucket    integer  the bucket's number
ARGV[2]    identity  the identity's field
ARGV[3]    id        mixed id
ARGV[4]    since     integer  microseconds since 1970, as the profile lists the identity
Computed   none
Returns    1 where it was taken away, 0 where it belongs to nobody or another
Errors     none
Cost       O(log reservations); safe to send twice
]]
local key, reserved = KEYS[1], KEYS[2]
local bucket, identity, id, since = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local held = redis.call('HGET', key, identity)
if held ~= id .. since and held ~= id .. 'r' .. since then return 0 end
redis.call('HDEL', key, identity)
redis.call('ZREM', reserved, bucket .. ':' .. identity)
return 1
