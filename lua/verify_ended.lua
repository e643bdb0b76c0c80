#!lua flags=no-writes
--[[
What there is of instances, or of contributions to them, that are entered as stale or as ended.

KEYS[1]    stale     ZSET  instances whose members are not yet told
KEYS[2]    none      never exists
ARGV[1..]  entry     instance, or instance and mixed id as one; at most 200
Computed   <tag>:instance:<iid>
Returns    {held, ...}: the version of the instance, or the seq of the contribution; nil where there
           is none
Errors     none
Cost       O(entries), about 1 us each
]]
--- @include "include/tag_of"
local tag = tag_of(KEYS[1])
local sub = string.sub
local reply = {}
for i = 1, #ARGV do
  local key, id = tag .. ':instance:' .. sub(ARGV[i], 1, 16), sub(ARGV[i], 17)
  local held = redis.call('HGET', key, id == '' and 'version' or id)
  reply[i] = held and (string.match(held, '^%d+') or '')
end
return reply
