#!lua flags=no-writes
--[[
Reservations of this slot that are older than `before` and that somebody has to settle.

KEYS[1]    reserved  ZSET  open reservations of this slot: bucket and identity -> attempt
KEYS[2]    none      never exists
ARGV[1]    before    integer  microseconds since 1970
ARGV[2]    limit     integer
Computed   <tag>:identity:<bucket>
Returns    {bucket and identity, what the bucket holds or nil, ...}
Errors     none
Cost       O(limit)
]]
--- @include "include/tag_of"
local reserved = KEYS[1]
local before, limit = ARGV[1], tonumber(ARGV[2])
local buckets = tag_of(reserved) .. ':identity:'
local found = {}
local open = redis.call('ZRANGEBYSCORE', reserved, '-inf', before, 'LIMIT', 0, limit)
for i = 1, #open do
  local bucket, identity = string.match(open[i], '^(%d+):(.*)$')
  found[2 * i - 1] = open[i]
  found[2 * i] = redis.call('HGET', buckets .. bucket, identity)
end
return found
