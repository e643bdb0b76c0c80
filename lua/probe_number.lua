#!lua flags=no-writes
--[[
Is a group number unused in this partition? A failover may have lost the directory's writes, but
not the partition's.

KEYS[1]    state     HASH  state of groups in this partition
KEYS[2]    count     HASH  members of groups in this partition
KEYS[3]    dynamic   SET   numbers of dynamic groups that have had members here
KEYS[4]    none      never exists
ARGV[1]    group     integer  the number
Computed   none
Returns    1 where something is known of it, else 0
Errors     none
Cost       O(1)
]]
local group = ARGV[1]
if redis.call('HEXISTS', KEYS[1], group) == 1 then return 1 end
if redis.call('HEXISTS', KEYS[2], group) == 1 then return 1 end
return redis.call('SISMEMBER', KEYS[3], group)
