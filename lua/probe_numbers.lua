#!lua flags=no-writes
--[[
Which of some group numbers are unused in this partition? As `probe_number`, for many at once.

KEYS[1]    state     HASH  state of groups in this partition
KEYS[2]    count     HASH  members of groups in this partition
KEYS[3]    dynamic   SET   numbers of dynamic groups that have had members here
KEYS[4]    none      never exists
ARGV[1..]  group     integer  the numbers; at most 1,000
Computed   none
Returns    string, a letter per number: 1 where something is known of it, else 0
Errors     none
Cost       O(numbers), about 0.5 us each
]]
local states = redis.call('HMGET', KEYS[1], unpack(ARGV))
local counts = redis.call('HMGET', KEYS[2], unpack(ARGV))
local derived = redis.call('SMISMEMBER', KEYS[3], unpack(ARGV))
local letters = {}
for i = 1, #ARGV do
  letters[i] = (states[i] or counts[i] or derived[i] == 1) and '1' or '0'
end
return table.concat(letters)
