-- Take ids[1..] (all of them members) out of the segments of a group and lower its count. What was
-- split too far for the members left is merged; a group without members leaves no field.
--- @include "include/head_of"
--- @include "include/segment_at"
--- @include "include/segment_key"
--- @include "include/merge_segments"
--- @include "include/drop_count"
local function delete_members(tag, group, ids)
  if #ids == 0 then return end
  local shape = tag .. ':shape'
  local segments = tonumber(redis.call('HGET', shape, group) or '1')
  for i = 1, #ids do
    local depth, prefix = segment_at(segments, head_of(ids[i]))
    redis.call('ZREM', segment_key(tag, group, depth, prefix), ids[i])
  end
  local count = redis.call('HINCRBY', tag .. ':count', group, -#ids)
  if count <= 0 then drop_count(tag .. ':count', group) end
  if segments > 1 and count < 24 * segments then
    repeat
      merge_segments(tag, group, segments)
      segments = segments - 1
    until segments == 1 or count >= 24 * segments
    if segments == 1 then
      redis.call('HDEL', shape, group)
    else
      redis.call('HSET', shape, group, segments)
    end
  end
end
