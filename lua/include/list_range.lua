-- The members of a group whose h is in [from, to), in ascending order, given how many segments the
-- group has here; and how many segments were looked at. A segment that the range cuts gives only
-- what lies in the range.
--- @include "include/bytes_of"
--- @include "include/segment_at"
--- @include "include/segment_key"
local function list_range(tag, group, segments, from, to)
  local found, looked_at, h = nil, 0, from
  while h < to do
    local depth, prefix, first, after = segment_at(segments, h)
    local key = segment_key(tag, group, depth, prefix)
    local ids
    if first >= from and after <= to then
      ids = redis.call('ZRANGE', key, 0, -1)
    else
      ids = redis.call('ZRANGE', key, '[' .. bytes_of(math.max(first, from)),
        after <= to and '+' or '(' .. bytes_of(to), 'BYLEX')
    end
    if not found then
      found = ids
    else
      local size = #found
      for i = 1, #ids do
        found[size + i] = ids[i]
      end
    end
    looked_at = looked_at + 1
    h = after
  end
  return found or {}, looked_at
end
