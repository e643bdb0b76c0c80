#!lua flags=no-writes
--[[
What instances hold of profiles.

KEYS[1]    stale     ZSET  instances whose members are not yet told
KEYS[2]    none      never exists
ARGV[1]    budget    integer  after about as many KiB the step ends
ARGV[2..]  instance and mixed id, alternating; at most 200 of each
Computed   <tag>:instance:<iid>
Returns    {rules, contribution, ...} of the first ones: as they are held, nil where there is none
Errors     none
Cost       O(pairs + budget), about 1 us each
]]
--- @include "include/tag_of"
local tag = tag_of(KEYS[1])
local budget = 1024 * tonumber(ARGV[1])
local reply = {}
local size = 0
for i = 2, #ARGV, 2 do
  if budget <= 0 then break end
  local held = redis.call('HMGET', tag .. ':instance:' .. ARGV[i], 'rules', ARGV[i + 1])
  reply[size + 1] = held[1]
  reply[size + 2] = held[2]
  size = size + 2
  budget = budget - 64 - (held[2] and #held[2] or 0)
end
return reply
