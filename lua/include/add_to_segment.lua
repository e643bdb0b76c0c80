-- Add ids[first..last], ascending, to one segment. In chunks, since unpack takes fewer than 8,000
-- values.
local function add_to_segment(key, ids, first, last)
  -- PERF: in a large group each of a hundred ids has a segment of its own.
  if first == last then return redis.call('ZADD', key, '0', ids[first]) end
  while first <= last do
    local stop = math.min(last, first + 1999)
    local arguments, size = {}, 0
    -- PERF: from the last to the first, since the server looks for the place of each from the
    -- beginning: ascending, it passes all that were added before.
    for i = stop, first, -1 do
      arguments[size + 1] = '0'
      arguments[size + 2] = ids[i]
      size = size + 2
    end
    redis.call('ZADD', key, unpack(arguments))
    first = stop + 1
  end
end
