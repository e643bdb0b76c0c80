#!lua flags=allow-oom
--[[
Note that every partition knows a version of the rules, unless a later one is on its way.

KEYS[1]    installing STRING  version that partitions are to be told of
KEYS[2]    none       never exists
ARGV[1]    version    integer
Computed   none
Returns    1 where that was the one, else 0
Errors     none
Cost       O(1); safe to send twice
]]
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
