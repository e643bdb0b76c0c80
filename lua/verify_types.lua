#!lua flags=no-writes
--[[
The types of keys of one tag.

KEYS[1]    first     a key of the same tag
KEYS[2]    none      never exists
ARGV[1..]  key       keys of the same tag, whole; at most 1,000
Computed   the keys of ARGV
Returns    {type, ...}, one per key: string, hash, set, zset, ..., or none
Errors     none
Cost       O(keys), under 1 us each
]]
--- @include "include/tag_of"
local tag = tag_of(KEYS[1])
local types = {}
for i = 1, #ARGV do
  local key = ARGV[i]
  local found = 'none'
  if tag_of(key) == tag then
    found = redis.call('TYPE', key)
    if type(found) == 'table' then found = found.ok end
  end
  types[i] = found
end
return types
