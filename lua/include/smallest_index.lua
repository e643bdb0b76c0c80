-- Of the indexes KEYS[first..last], the place of the one with the fewest entries, and how many.
local function smallest_index(first, last)
  local best, size
  for i = first, last do
    local entries = redis.call('ZCARD', KEYS[i])
    if not size or entries < size then
      best, size = i, entries
    end
  end
  return best, size
end
