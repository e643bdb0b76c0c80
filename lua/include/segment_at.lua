-- The segment that holds h when a group has `segments` of them (linear hashing on the leading
-- bits): its depth, its prefix, and the range [from, to) of h that it covers.
local function segment_at(segments, h)
  local p, depth = 1, 0
  while p * 2 <= segments do
    p = p * 2
    depth = depth + 1
  end
  local width = 4294967296 / p
  local prefix = math.floor(h / width)
  if prefix < segments - p then
    depth = depth + 1
    width = width / 2
    prefix = math.floor(h / width)
  end
  return depth, prefix, prefix * width, (prefix + 1) * width
end
