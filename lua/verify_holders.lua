#!lua flags=no-writes
--[[
What the buckets of some identities hold, reservations included.

KEYS[1]    reserved  ZSET  open reservations of this slot
KEYS[2]    none      never exists
ARGV[1..]  bucket and identity, alternating; at most 200 of each
Computed   <tag>:identity:<bucket>
Returns    {value or nil, ...}, one per identity
Errors     none
Cost       O(identities), about 1 us each
]]
--- @include "include/tag_of"
local buckets = tag_of(KEYS[1]) .. ':identity:'
local found = {}
for i = 1, #ARGV, 2 do
  found[(i + 1) / 2] = redis.call('HGET', buckets .. ARGV[i], ARGV[i + 1])
end
return found
