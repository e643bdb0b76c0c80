#!lua flags=allow-oom
--[[
Drop what is kept under names that are no group numbers.

KEYS[1]    state     HASH  state of groups in this partition
KEYS[2]    count     HASH  members of groups in this partition
KEYS[3]    shape     HASH  segments of groups in this partition
KEYS[4]    none      never exists
ARGV[1..]  field     names
Computed   none
Returns    how many fields were dropped
Errors     none
Cost       O(fields); safe to send twice
]]
local dropped = 0
for i = 1, #ARGV do
  for at = 1, 3 do
    dropped = dropped + redis.call('HDEL', KEYS[at], ARGV[i])
  end
end
return dropped
