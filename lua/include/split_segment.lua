-- Split segment k of the current depth in two: the group then has one segment more. Its lower half
-- keeps its place in memory, and nothing goes before it is written elsewhere.
--- @include "include/add_to_segment"
--- @include "include/segment_key"
local function split_segment(tag, group, segments)
  local p, depth = 1, 0
  while p * 2 <= segments do
    p = p * 2
    depth = depth + 1
  end
  local k = segments - p
  local old = segment_key(tag, group, depth, k)
  local middle = (k + 0.5) * (4294967296 / p)
  local bytes = {}
  for i = 4, 1, -1 do
    bytes[i] = string.char(middle % 256)
    middle = math.floor(middle / 256)
  end
  local low = segment_key(tag, group, depth + 1, 2 * k)
  local ids = redis.call('ZRANGEBYLEX', old, '[' .. table.concat(bytes), '+')
  local left = redis.call('ZCARD', old) - #ids
  if #ids > 0 then
    add_to_segment(segment_key(tag, group, depth + 1, 2 * k + 1), ids, 1, #ids)
    redis.call('ZREMRANGEBYRANK', old, -#ids, -1)
  end
  if left + #ids > 128 then
    -- NOTE: one that large is no listpack any more, and would never become one again.
    add_to_segment(low, redis.call('ZRANGE', old, 0, -1), 1, left)
    redis.call('DEL', old)
  elseif left > 0 then
    redis.call('RENAME', old, low)
  end
end
