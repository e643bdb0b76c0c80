-- Enter ids[1..] (ascending, none of them a member yet) into the segments of a group and raise its
-- count. Splits come first, so that no id is written twice.
--- @include "include/head_of"
--- @include "include/segment_at"
--- @include "include/segment_key"
--- @include "include/add_to_segment"
--- @include "include/split_segment"
local function insert_members(tag, group, ids)
  if #ids == 0 then return end
  local shape = tag .. ':shape'
  local segments = tonumber(redis.call('HGET', shape, group) or '1')
  local counts = tag .. ':count'
  local count = redis.call('HINCRBY', counts, group, #ids)
  if count == #ids and redis.call('HEXISTS', counts, '-') == 0 then
    -- PERF: so long a value makes the hash a table. Up to 512 groups it would be a list, in which
    -- each is looked for from the beginning: 300 us for the counts of 92 groups out of 300.
    redis.call('HSET', counts, '-', string.rep('-', 65))
  end
  if count > 48 * segments then
    repeat
      split_segment(tag, group, segments)
      segments = segments + 1
    until count <= 48 * segments
    redis.call('HSET', shape, group, segments)
  end
  local first, final = 1, head_of(ids[#ids])
  while first <= #ids do
    local depth, prefix, _, to = segment_at(segments, head_of(ids[first]))
    -- PERF: mostly all that are left belong to one segment, or each to one of its own.
    local last = final < to and #ids or first
    while last < #ids and head_of(ids[last + 1]) < to do
      last = last + 1
    end
    add_to_segment(segment_key(tag, group, depth, prefix), ids, first, last)
    first = last + 1
  end
end
