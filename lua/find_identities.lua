#!lua flags=no-writes
--[[
The profiles that identities of one slot resolve to. One that is only reserved resolves to nobody.

KEYS[1]    count     HASH  members of groups in this partition
KEYS[2]    none      never exists
ARGV[1..]  bucket and identity, alternating: the bucket's number, the identity's field
Computed   <tag>:identity:<bucket>
Returns    {mixed id or nil, ...}, one per identity
Errors     none
Cost       O(identities), about 1 us each
]]
--- @include "include/tag_of"
--- @include "include/owner_of"
local buckets = tag_of(KEYS[1]) .. ':identity:'
local found = {}
for i = 1, #ARGV, 2 do
  found[(i + 1) / 2] = owner_of(redis.call('HGET', buckets .. ARGV[i], ARGV[i + 1])) or false
end
return found
