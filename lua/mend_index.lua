#!lua
--[[
Enter an instance where its definition's are listed.

KEYS[1]    stale     ZSET  instances whose members are not yet told
KEYS[2]    none      never exists
ARGV[1]    instance  its id
Computed   <tag>:instance:<iid>, <tag>:index:<number>:<bucket>
Returns    1 where it was entered, 0 where it was, or there is no such instance
Errors     none
Cost       O(log instances of the bucket); safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/index_key"
local iid = ARGV[1]
local tag = tag_of(KEYS[1])
local number = redis.call('HGET', tag .. ':instance:' .. iid, 'number')
if not string.match(number or '', '^[1-9]%d*$') then return 0 end
return redis.call('ZADD', index_key(tag, number, iid), 0, iid)
