#!lua flags=allow-oom
--[[
One bounded step of forgetting contributions that ended, and instances that went, long ago.

KEYS[1]    ended     ZSET  instance and mixed id -> seq of an ended contribution; instance -> its
           last version
KEYS[2]    none      never exists
ARGV[1]    before    integer  microseconds since 1970: what has a seq or version from before goes
ARGV[2]    limit     integer
Computed   none
Returns    how many went
Errors     none
Cost       O(limit), about 1 us each; safe to send twice
]]
local ended = KEYS[1]
local before, limit = ARGV[1], ARGV[2]
local found = redis.call('ZRANGEBYSCORE', ended, '-inf', '(' .. before, 'LIMIT', 0, limit)
for i = 1, #found, 2000 do
  redis.call('ZREM', ended, unpack(found, i, math.min(i + 1999, #found)))
end
return #found
