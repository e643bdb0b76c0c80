#!lua flags=no-writes
--[[
A part of the ids of a definition's instances in this partition, in their order, from one bound on.

KEYS[1]    index     ZSET  the first bucket of the definition's instances
KEYS[2]    none      never exists
ARGV[1]    number    integer  the definition's number
ARGV[2]    backward  0 or 1: ascending, or descending
ARGV[3]    bound     '' or an id after ( or [, where the part begins, as ZRANGE BYLEX writes it
ARGV[4]    limit     integer  ids at most
Computed   <tag>:index:<number>:<bucket>
Returns    {left, id, ...}: the bound of the next part, '' after the last one
Errors     none
Cost       O(256 buckets), about 2 us each, and O(limit)
]]
--- @include "include/tag_of"
local number, backward, bound, limit = ARGV[1], ARGV[2] == '1', ARGV[3], tonumber(ARGV[4])
local prefix = tag_of(KEYS[1]) .. ':index:' .. number .. ':'
-- A bucket holds a contiguous range of ids, their leading ten bits, so its order is theirs.
local at, step = 0, 1
if backward then at, step = 1023, -1 end
if bound ~= '' then
  at = math.floor((string.byte(bound, 2) * 256 + string.byte(bound, 3)) / 64)
end
local found, looked_at = {''}, 0
while at >= 0 and at < 1024 and #found <= limit and looked_at < 256 do
  local ids
  if backward then
    ids = redis.call('ZRANGE', prefix .. at, bound == '' and '+' or bound, '-', 'BYLEX', 'REV',
      'LIMIT', 0, limit + 1 - #found)
  else
    ids = redis.call('ZRANGE', prefix .. at, bound == '' and '-' or bound, '+', 'BYLEX',
      'LIMIT', 0, limit + 1 - #found)
  end
  for i = 1, #ids do
    found[#found + 1] = ids[i]
  end
  at = at + step
  looked_at = looked_at + 1
end
if #found > limit then
  found[1] = '(' .. found[#found]
elseif at >= 0 and at < 1024 then
  -- The first two bytes of the lowest id there can be in the bucket, or in the one above.
  local low = 64 * (backward and at + 1 or at)
  found[1] = (backward and '(' or '[') .. string.char(math.floor(low / 256), low % 256)
end
return found
