#!lua flags=no-writes
--[[
Documents of groups by number.

KEYS[1]    ids       HASH  id -> number
KEYS[2]    none      never exists
ARGV[1..]  number    integer; at most 1,000
Computed   <tag>:group:<number>
Returns    {document, version, ...}; nil, nil where there is no such group
Errors     none
Cost       O(numbers), about 1 us each
]]
--- @include "include/tag_of"
local groups = tag_of(KEYS[1]) .. ':group:'
local found = {}
for i = 1, #ARGV do
  local held = redis.call('HMGET', groups .. ARGV[i], 'document', 'version')
  found[2 * i - 1] = held[1]
  found[2 * i] = held[2]
end
return found
