#!lua flags=allow-oom
--[[
Have what is remembered of a profile's batches go by itself.

KEYS[1]    requests  ZSET  hash of key and request -> when
KEYS[2]    none      never exists
ARGV[1]    seconds   integer  after how long
Computed   none
Returns    1 where it was to stay for ever, else 0
Errors     none
Cost       O(1); safe to send twice
]]
if redis.call('TTL', KEYS[1]) ~= -1 then return 0 end
return redis.call('EXPIRE', KEYS[1], ARGV[1])
