#!lua flags=allow-oom
--[[
Drop entries of `erasing` that are no profiles of this partition.

KEYS[1]    erasing   SET   profiles being erased
KEYS[2]    none      never exists
ARGV[1..]  entry     entries
Computed   none
Returns    how many were dropped
Errors     none
Cost       O(entries); safe to send twice
]]
local dropped = 0
for i = 1, #ARGV do
  dropped = dropped + redis.call('SREM', KEYS[1], ARGV[i])
end
return dropped
