#!lua flags=allow-oom
--[[
Put profiles, or instances, that are behind at the end of those that wait: what went wrong with them
must not keep the others from their turn.

KEYS[1]    behind    ZSET  profiles that are dirty, or instances that are stale -> since when
KEYS[2]    none      never exists
ARGV[1]    now       integer  microseconds since 1970
ARGV[2..]  ids of 16 bytes
Computed   none
Returns    how many they are
Errors     none
Cost       O(ARGV), about 1 us each; safe to send twice
]]
local behind, now = KEYS[1], ARGV[1]
for i = 2, #ARGV do redis.call('ZADD', behind, 'XX', now, ARGV[i]) end
return #ARGV - 1
