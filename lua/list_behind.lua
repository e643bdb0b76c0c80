#!lua flags=no-writes
--[[
Profiles, or instances, of this slot that have been behind since a time between two others, the
oldest first.

KEYS[1]    behind    ZSET  profiles that are dirty, or instances that are stale -> since when
KEYS[2]    none      never exists
ARGV[1]    low       integer or -inf, microseconds since 1970
ARGV[2]    high      integer or +inf
ARGV[3]    offset    integer  so many are passed over
ARGV[4]    limit     integer
Computed   none
Returns    ids of 16 bytes
Errors     none
Cost       O(offset + limit)
]]
local behind = KEYS[1]
local low, high, offset, limit = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
return redis.call('ZRANGEBYSCORE', behind, low, high, 'LIMIT', offset, limit)
