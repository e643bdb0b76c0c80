#!lua flags=no-writes
--[[
What a partition knows of dynamic groups: whether they are noted to have had members here, and how
many they have.

KEYS[1]    dynamic   SET   numbers of dynamic groups that have had members here
KEYS[2]    count     HASH  members of groups in this partition
KEYS[3]    none      never exists
ARGV[1..]  group     numbers; at most 500
Computed   none
Returns    {noted, count, ...}: noted is 0 or 1, count as it is held, nil without one
Errors     none
Cost       O(groups), about 1 us each
]]
local dynamic, count = KEYS[1], KEYS[2]
local reply = {}
for i = 1, #ARGV do
  reply[2 * i - 1] = redis.call('SISMEMBER', dynamic, ARGV[i])
  reply[2 * i] = redis.call('HGET', count, ARGV[i])
end
return reply
