#!lua flags=no-writes
--[[
How many instances a definition has in a quarter of the buckets of this partition.

KEYS[1]    index     ZSET  the first bucket of the quarter
KEYS[2]    none      never exists
ARGV[1]    number    integer  the definition's number
ARGV[2]    first     integer  the first bucket
Computed   <tag>:index:<number>:<bucket>
Returns    the number of them
Errors     none
Cost       O(256 buckets), about 2 us each
]]
--- @include "include/tag_of"
local prefix, first = tag_of(KEYS[1]) .. ':index:' .. ARGV[1] .. ':', tonumber(ARGV[2])
local count = 0
for bucket = first, first + 255 do
  count = count + redis.call('ZCARD', prefix .. bucket)
end
return count
