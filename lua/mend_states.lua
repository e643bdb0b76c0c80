#!lua flags=allow-oom
--[[
Drop the state of a group in this partition where it is malformed.

KEYS[1]    state     HASH  state of groups in this partition
KEYS[2]    none      never exists
ARGV[1]    group     integer  the group's number
Computed   none
Returns    1 where it was dropped, else 0
Errors     none
Cost       O(1); safe to send twice
]]
local held = redis.call('HGET', KEYS[1], ARGV[1])
local version = held and string.match(held, '^(%d+) [aidg]$')
if not held or (version and tonumber(version) < 9007199254740992) then return 0 end
return redis.call('HDEL', KEYS[1], ARGV[1])
