#!lua flags=no-writes
--[[
The custom ids of profiles of one partition.

KEYS[1]    count     HASH  members of groups in this partition
KEYS[2]    none      never exists
ARGV[1..]  id        mixed ids
Computed   <tag>:profile:<id>
Returns    {custom id or nil, ...}, one per profile
Errors     none
Cost       O(profiles), about 1 us each
]]
--- @include "include/tag_of"
local profiles = tag_of(KEYS[1]) .. ':profile:'
local found = {}
for i = 1, #ARGV do
  found[i] = redis.call('HGET', profiles .. ARGV[i], 'custom_id')
end
return found
