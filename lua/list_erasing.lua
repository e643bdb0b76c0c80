#!lua flags=no-writes
--[[
Some of the profiles of this partition that are being erased.

KEYS[1]    erasing   SET  profiles being erased
KEYS[2]    none      never exists
ARGV[1]    limit     integer
Computed   none
Returns    {mixed id, ...}
Errors     none
Cost       O(limit)
]]
return redis.call('SRANDMEMBER', KEYS[1], ARGV[1])
