#!lua
--[[
Reserve an identity for a profile whose record may live in another slot: the first of three steps
(reserve, confirm, settle). Who finds it reserved for the same profile goes on with that attempt:
were it replaced, many who add it at once would keep each other from settling.

KEYS[1]    identity  HASH  the identity's bucket: identity -> id and since, or a reservation
KEYS[2]    reserved  ZSET  open reservations of this slot: bucket and identity -> attempt
KEYS[3]    none      never exists
ARGV[1]    bucket    integer  the bucket's number
ARGV[2]    identity  the identity's field
ARGV[3]    id        mixed id
ARGV[4]    attempt   integer  microseconds since 1970, one per attempt
ARGV[5]    expected  a reservation found dead before, which may be replaced; or ''
Computed   none
Returns    what is held now: an owner (its id, and since when) or a reservation, ours or not
Errors     none
Cost       O(log reservations); safe to send twice
]]
local key, reserved = KEYS[1], KEYS[2]
local bucket, identity, id, attempt, expected = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local held = redis.call('HGET', key, identity)
if held and held ~= expected then return held end
local reservation = id .. 'r' .. attempt
redis.call('HSET', key, identity, reservation)
redis.call('ZADD', reserved, attempt, bucket .. ':' .. identity)
return reservation
