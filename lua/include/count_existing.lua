-- How many of these keys there are. In chunks, since unpack takes fewer than 8,000 values.
local function count_existing(keys)
  local found = 0
  for i = 1, #keys, 2000 do
    found = found + redis.call('EXISTS', unpack(keys, i, math.min(i + 1999, #keys)))
  end
  return found
end
