#!lua flags=no-writes
--[[
Whose identities of one slot are.

KEYS[1]    count     HASH  members of groups in this partition
KEYS[2]    none      never exists
ARGV[1..]  bucket and identity, alternating: the bucket's number, the identity's field
Computed   <tag>:identity:<bucket>
Returns    {holder or nil, ...}, one per identity: the mixed id of its owner, or a reservation (id,
           r, attempt) that has to be settled before anybody else takes the identity
Errors     none
Cost       O(identities), about 1 us each
]]
--- @include "include/tag_of"
--- @include "include/owner_of"
local buckets = tag_of(KEYS[1]) .. ':identity:'
local found = {}
for i = 1, #ARGV, 2 do
  local held = redis.call('HGET', buckets .. ARGV[i], ARGV[i + 1])
  found[(i + 1) / 2] = owner_of(held) or held
end
return found
