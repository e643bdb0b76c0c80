#!lua flags=no-writes
--[[
What a partition knows of some group numbers.

KEYS[1]    state     HASH  state of groups in this partition
KEYS[2]    count     HASH  members of groups in this partition
KEYS[3]    shape     HASH  segments of groups in this partition
KEYS[4]    none      never exists
ARGV[1..]  number    integer; at most 200
Computed   none
Returns    {state, count, shape, ...}, three parts per number, each nil where there is none
Errors     none
Cost       O(numbers)
]]
local reply = {}
for i = 1, #ARGV do
  reply[3 * i - 2] = redis.call('HGET', KEYS[1], ARGV[i])
  reply[3 * i - 1] = redis.call('HGET', KEYS[2], ARGV[i])
  reply[3 * i] = redis.call('HGET', KEYS[3], ARGV[i])
end
return reply
