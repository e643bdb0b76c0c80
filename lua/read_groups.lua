#!lua flags=no-writes
--[[
Documents of groups by number: of the first ones, where all would be too much.

KEYS[1]    ids       HASH  id -> number
KEYS[2]    none      never exists
ARGV[1..]  number    integer; at most 1,000
Computed   <tag>:group:<number>
Returns    {document, version, ...}; nil, nil where there is no such group. Fewer than asked for,
           where documents come to a million bytes
Errors     none
Cost       O(numbers), about 1 us each and 1.2 us a kB
]]
--- @include "include/tag_of"
local groups = tag_of(KEYS[1]) .. ':group:'
local found, bytes = {}, 0
for i = 1, #ARGV do
  local held = redis.call('HMGET', groups .. ARGV[i], 'document', 'version')
  found[2 * i - 1] = held[1]
  found[2 * i] = held[2]
  bytes = bytes + (held[1] and #held[1] or 0)
  if bytes > 1000000 then break end
end
return found
