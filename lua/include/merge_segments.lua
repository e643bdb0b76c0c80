-- Undo the last split of a group that has `segments` > 1: it then has one segment fewer.
--- @include "include/add_to_segment"
--- @include "include/segment_key"
local function merge_segments(tag, group, segments)
  local p, depth = 1, 0
  while p * 2 <= segments - 1 do
    p = p * 2
    depth = depth + 1
  end
  local k = segments - 1 - p
  local merged = segment_key(tag, group, depth, k)
  for half = 2 * k, 2 * k + 1 do
    local key = segment_key(tag, group, depth + 1, half)
    local ids = redis.call('ZRANGE', key, 0, -1)
    add_to_segment(merged, ids, 1, #ids)
    redis.call('DEL', key)
  end
end
