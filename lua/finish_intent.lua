#!lua flags=allow-oom
--[[
Drop the intent of a number, unless a later change left a newer one.

KEYS[1]    intents   ZSET  numbers with something left to do -> version (intents or deleting)
KEYS[2]    none      never exists
ARGV[1]    number    integer
ARGV[2]    version   integer  version of the change that is complete now
Computed   none
Returns    1 where it was dropped, else 0
Errors     none
Cost       O(log intents); safe to send twice
]]
local held = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not held or tonumber(held) > tonumber(ARGV[2]) then return 0 end
return redis.call('ZREM', KEYS[1], ARGV[1])
