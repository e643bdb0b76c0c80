#!lua
--[[
Note dynamic groups that have members in this partition as such.

KEYS[1]    dynamic   SET   numbers of dynamic groups that have had members here
KEYS[2]    count     HASH  members of groups in this partition
KEYS[3]    none      never exists
ARGV[1..]  group     integer  numbers of dynamic groups; at most 500
Computed   none
Returns    how many were not noted
Errors     none
Cost       O(groups), about 1 us each; safe to send twice
]]
local dynamic, count = KEYS[1], KEYS[2]
local noted = 0
for i = 1, #ARGV do
  if redis.call('HEXISTS', count, ARGV[i]) == 1 then
    noted = noted + redis.call('SADD', dynamic, ARGV[i])
  end
end
return noted
