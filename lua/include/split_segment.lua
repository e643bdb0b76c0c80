-- Split segment k of the current depth in two: the group then has one segment more. Both halves
-- are written before the old segment goes.
--- @include "include/add_to_segment"
--- @include "include/segment_key"
--- @include "include/head_of"
local function split_segment(tag, group, segments)
  local p, depth = 1, 0
  while p * 2 <= segments do
    p = p * 2
    depth = depth + 1
  end
  local k = segments - p
  local old = segment_key(tag, group, depth, k)
  local ids = redis.call('ZRANGE', old, 0, -1)
  if #ids == 0 then return end
  local middle = (k + 0.5) * (4294967296 / p)
  local first_high = #ids + 1
  for i = 1, #ids do
    if head_of(ids[i]) >= middle then
      first_high = i
      break
    end
  end
  add_to_segment(segment_key(tag, group, depth + 1, 2 * k), ids, 1, first_high - 1)
  add_to_segment(segment_key(tag, group, depth + 1, 2 * k + 1), ids, first_high, #ids)
  redis.call('DEL', old)
end
