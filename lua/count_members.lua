#!lua flags=no-writes
--[[
How many members each of some groups has in this partition.

KEYS[1]    count     HASH  members of groups in this partition
KEYS[2]    none      never exists
ARGV[1..]  group     integer  numbers of groups; at most 1,000
Computed   none
Returns    {members, ...}, one per group; nil where it has none
Errors     none
Cost       O(groups)
]]
return redis.call('HMGET', KEYS[1], unpack(ARGV))
