-- Is an id in the one segment of a group that may hold it?
--- @include "include/head_of"
--- @include "include/segments_of"
--- @include "include/segment_at"
--- @include "include/segment_key"
local function in_segment(tag, group, id)
  local depth, prefix = segment_at(segments_of(tag, group), head_of(id))
  return redis.call('ZSCORE', segment_key(tag, group, depth, prefix), id) ~= false
end
