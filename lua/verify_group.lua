#!lua flags=no-writes
--[[
The count and the shape of a group in this partition, and how many ids some of its segments hold.

KEYS[1]    count     HASH  members of groups in this partition
KEYS[2]    shape     HASH  segments of groups in this partition
KEYS[3]    none      never exists
ARGV[1]    group     integer  the group's number
ARGV[2]    first     integer  the first segment to add up, from 0
ARGV[3]    limit     integer  segments at most
Computed   <tag>:g:<group>:<depth>:<prefix>
Returns    {count, shape, segments, members}: count and shape as they are held, or nil
Errors     none
Cost       O(limit), under 1 us each
]]
--- @include "include/tag_of"
--- @include "include/segments_of"
--- @include "include/segment_number"
--- @include "include/segment_key"
local count, shape = KEYS[1], KEYS[2]
local group, first, limit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local tag = tag_of(count)
local segments = segments_of(tag, group)
local members = 0
for i = first, math.min(first + limit, segments) - 1 do
  local depth, prefix = segment_number(segments, i)
  members = members + redis.call('ZCARD', segment_key(tag, group, depth, prefix))
end
return {redis.call('HGET', count, group), redis.call('HGET', shape, group), segments, members}
