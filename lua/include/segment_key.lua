-- The key of one segment of a group.
local function segment_key(tag, group, depth, prefix)
  return string.format('%s:g:%s:%d:%d', tag, group, depth, prefix)
end
