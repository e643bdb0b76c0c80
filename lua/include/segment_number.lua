-- The i-th (from 0) of a group's `segments` segments, in the order of h: its depth and its prefix.
local function segment_number(segments, i)
  local p, depth = 1, 0
  while p * 2 <= segments do
    p = p * 2
    depth = depth + 1
  end
  local k = segments - p
  if i < 2 * k then return depth + 1, i end
  return depth, i - k
end
