#!lua flags=allow-oom
--[[
Make a group's count what its segments hold, then split or merge some of them, so that its shape
comes nearer to what the count asks for.

KEYS[1]    count     HASH  members of groups in this partition
KEYS[2]    shape     HASH  segments of groups in this partition
KEYS[3]    none      never exists
ARGV[1]    group     integer  the group's number
ARGV[2]    limit     integer  splits or merges at most
Computed   <tag>:g:<group>:<depth>:<prefix>
Returns    {more, old count, old shape, count, segments}: the old ones as they were held, or nil;
           more is 1 where the shape was changed: then it has to be called again
Errors     none
Cost       O(segments), under 1 us each, and 40 us for each split or merge; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/segments_of"
--- @include "include/segment_number"
--- @include "include/segment_key"
--- @include "include/split_segment"
--- @include "include/merge_segments"
--- @include "include/drop_count"
local count, shape = KEYS[1], KEYS[2]
local group, limit = ARGV[1], tonumber(ARGV[2])
local call = redis.call
local tag = tag_of(count)
local old_count, old_shape = call('HGET', count, group), call('HGET', shape, group)
local segments = segments_of(tag, group)
if segments > 5000 and (tonumber(old_count or '0') or 0) < 24 * segments then
  -- So many for so few members are no shape at all: what is somewhere else is moved later.
  segments = 1
end
local members = 0
for i = 0, segments - 1 do
  local depth, prefix = segment_number(segments, i)
  members = members + call('ZCARD', segment_key(tag, group, depth, prefix))
end
local steps = 0
if members == 0 then
  segments = 1
else
  while segments > 1 and members < 24 * segments and steps < limit do
    merge_segments(tag, group, segments)
    segments = segments - 1
    steps = steps + 1
  end
  while members > 48 * segments and steps < limit do
    split_segment(tag, group, segments)
    segments = segments + 1
    steps = steps + 1
  end
end
if segments == 1 then
  call('HDEL', shape, group)
else
  call('HSET', shape, group, segments)
end
if members == 0 then
  drop_count(count, group)
else
  call('HSET', count, group, members)
end
return {steps > 0 and 1 or 0, old_count, old_shape, members, segments}
