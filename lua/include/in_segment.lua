-- Is an id in the one segment of a group that may hold it? `segments` is how many the group has,
-- where the caller knows that already.
--- @include "include/head_of"
--- @include "include/segments_of"
--- @include "include/segment_at"
--- @include "include/segment_key"
local function in_segment(tag, group, id, segments)
  local depth, prefix = segment_at(segments or segments_of(tag, group), head_of(id))
  return redis.call('ZSCORE', segment_key(tag, group, depth, prefix), id) ~= false
end
