#!lua
--[[
Make the field `d` of a profile's memberships the number of those that are in dynamic groups.

KEYS[1]    memberships HASH  memberships of the profile
KEYS[2]    none      never exists
ARGV[1..]  group     integer  numbers of dynamic groups among them
Computed   none
Returns    how many memberships are derived
Errors     none
Cost       O(groups); safe to send twice
]]
local key = KEYS[1]
local derived = 0
for i = 1, #ARGV do
  derived = derived + redis.call('HEXISTS', key, ARGV[i])
end
if derived == 0 then
  redis.call('HDEL', key, 'd')
else
  redis.call('HSET', key, 'd', derived)
end
return derived
