#!lua flags=allow-oom
--[[
Forget what changed of some of the profiles that rules have yet to follow, in a partition that
nobody writes to any more.

KEYS[1]    unsettled ZSET  profiles of which something changed -> since
KEYS[2]    none      never exists
ARGV[1]    limit     integer  profiles at most
Computed   <tag>:changed:<id>
Returns    how many profiles there were
Errors     none
Cost       O(limit), about 1 us each, memory is freed in the background; safe to send twice
]]
--- @include "include/tag_of"
local unsettled, limit = KEYS[1], tonumber(ARGV[1])
local call = redis.call
local tag = tag_of(unsettled)
local ids = call('ZRANGE', unsettled, 0, limit - 1)
for i = 1, #ids do call('UNLINK', tag .. ':changed:' .. ids[i]) end
if #ids > 0 then call('ZREMRANGEBYRANK', unsettled, 0, #ids - 1) end
return #ids
