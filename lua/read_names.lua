#!lua flags=no-writes
--[[
What some profiles are called, and their custom ids.

KEYS[1]    erasing   SET   profiles being erased
KEYS[2]    none      never exists
ARGV[1]    ids       packed mixed ids, 16 bytes each
Computed   <tag>:profile:<id>
Returns    {nickname, custom_id, nickname, ...}, in the order given; nil where there is none
Errors     none
Cost       O(ids), about 2 us each
]]
--- @include "include/tag_of"
local tag, packed = tag_of(KEYS[1]), ARGV[1]
local rows, size = {}, 0
for i = 1, #packed, 16 do
  local id = string.sub(packed, i, i + 15)
  local profile = redis.call('HMGET', tag .. ':profile:' .. id, 'nickname', 'custom_id')
  rows[size + 1] = profile[1]
  rows[size + 2] = profile[2]
  size = size + 2
end
return rows
