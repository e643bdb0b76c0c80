-- Up to `limit` numbers, from `bound` on in one direction, that stand in all of the indexes
-- KEYS[first..last], looking at `scan` entries at most. Also the last number looked at, or nil
-- where the walk came to the end.
--- @include "include/smallest_index"
--- @include "include/in_indexes"
local function walk_index(first, last, backward, bound, limit, scan)
  local best = smallest_index(first, last)
  -- With one index all that is looked at is found.
  if first == last then scan = math.min(scan, limit) end
  local entries
  if backward then
    entries = redis.call('ZRANGE', KEYS[best], bound == '' and '+inf' or bound, '-inf',
      'BYSCORE', 'REV', 'LIMIT', 0, scan)
  else
    entries = redis.call('ZRANGE', KEYS[best], bound == '' and '-inf' or bound, '+inf',
      'BYSCORE', 'LIMIT', 0, scan)
  end
  local found = {}
  for i = 1, #entries do
    if in_indexes(entries[i], first, last, best) then
      found[#found + 1] = entries[i]
      if #found == limit then return found, entries[i] end
    end
  end
  if #entries < scan then return found, nil end
  return found, entries[#entries]
end
