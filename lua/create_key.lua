#!lua
--[[
Keep a new signing key; as the first one only if there is none yet, so that processes that start
together agree. Keys that no token can name any more go.

KEYS[1]    keys      HASH    kid -> document
KEYS[2]    version   STRING  raised by every change of the registry
KEYS[3]    none      never exists
ARGV[1]    kid       string
ARGV[2]    document  JSON
ARGV[3]    first     0 or 1: only if there is none
ARGV[4..]  expired   kids to forget
Computed   none
Returns    1 where it was kept, else 0
Errors     none
Cost       O(keys); safe to send twice
]]
local keys, version = KEYS[1], KEYS[2]
if ARGV[3] == '1' and redis.call('EXISTS', keys) == 1 then return 0 end
redis.call('HSET', keys, ARGV[1], ARGV[2])
for i = 4, #ARGV do
  redis.call('HDEL', keys, ARGV[i])
end
redis.call('INCR', version)
return 1
