#!lua flags=no-writes
--[[
How many profiles of a range of h some groups have in common; or how many are in the first of them,
less those. The server counts segment by segment, and nobody is listed. Segments of two groups are
nested or disjoint: the finest one cuts what all groups have in common, and a segment of which all
members are added is counted whole, for no step ends within one.

KEYS[1]    state     HASH  state of groups in this partition
KEYS[2]    shape     HASH  segments of groups in this partition
KEYS[3]    none      never exists
ARGV[1]    from      integer  the h to begin at: 0, or what the last step returned
ARGV[2]    limit     integer  segments that are counted; then more, to the end of those added
ARGV[3]    added     integer  0: members in common; else of so many groups the members, less those
ARGV[4..]  group     integer  numbers of the groups
Computed   <tag>:g:<group>:<depth>:<prefix>
Returns    {to, count}: the h to go on at, 4294967296 at the end; how many there are in [from, to).
           `to` is `from` where that cannot be counted in one step: a group that is added has far
           fewer segments than another one
Errors     INACTIVE  a group is inactive: its number follows
           DELETED   a group is deleted: its number follows
Cost       O(segments x members of each squared), about 15 us for each
]]
--- @include "include/tag_of"
--- @include "include/segment_at"
--- @include "include/segment_key"
local state, shape = KEYS[1], KEYS[2]
local start, limit, added = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local call = redis.call
local tag = tag_of(state)
local states, shapes = call('HMGET', state, unpack(ARGV, 4)), call('HMGET', shape, unpack(ARGV, 4))
local segments = {}
for i = 1, #ARGV - 3 do
  local letter = states[i] and string.sub(states[i], -1) or 'a'
  if letter == 'i' then return redis.error_reply('INACTIVE ' .. ARGV[3 + i]) end
  if letter ~= 'a' then return redis.error_reply('DELETED ' .. ARGV[3 + i]) end
  segments[i] = tonumber(shapes[i] or '1')
end
local h, count, looked_at = start, 0, 0
-- The end of the segments that were counted whole.
local whole = h
while h < 4294967296 and (h < whole or looked_at < limit) do
  if looked_at == 2 * limit + 16 then return {string.format('%.0f', start), 0} end
  local keys_here, nearest = {}, 4294967296
  for i = 1, #segments do
    local depth, prefix, from, to = segment_at(segments[i], h)
    keys_here[i] = segment_key(tag, ARGV[3 + i], depth, prefix)
    if to < nearest then nearest = to end
    if i <= added then
      if from == h then count = count + call('ZCARD', keys_here[i]) end
      if to > whole then whole = to end
    end
  end
  local common = call('ZINTERCARD', #keys_here, unpack(keys_here))
  count = added == 0 and count + common or count - common
  looked_at = looked_at + 1
  h = nearest
end
return {string.format('%.0f', h), count}
