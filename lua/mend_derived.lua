#!lua
--[[
Make the field `d` of a profile's memberships the number of those that are in dynamic groups, as the
caller has counted them, if the memberships are as many as they were then.

KEYS[1]    memberships HASH  memberships of the profile
KEYS[2]    none      never exists
ARGV[1]    size      integer  how many fields there were
ARGV[2]    held      the field `d` as it was, or ''
ARGV[3]    derived   integer  memberships in dynamic groups
Computed   none
Returns    1 where it is so now, 0 where the memberships changed since
Errors     none
Cost       O(1); safe to send twice
]]
local key, size, held, derived = KEYS[1], tonumber(ARGV[1]), ARGV[2], ARGV[3]
if redis.call('HLEN', key) ~= size or (redis.call('HGET', key, 'd') or '') ~= held then return 0 end
if derived == '0' then
  redis.call('HDEL', key, 'd')
else
  redis.call('HSET', key, 'd', derived)
end
return 1
