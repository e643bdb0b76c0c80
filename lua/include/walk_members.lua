-- Up to `limit` member ids of a group from one bound on, in ascending order, or in descending
-- order where `backward`. The bound is '' (from the very end), or '(' or '[' before an id, as
-- ZRANGE BYLEX writes it. Splits and merges between two calls do not disturb it.
-- Also the bound to go on at where the walk stopped early, having looked at 300 segments: those of
-- a group that is being emptied from one end are mostly empty there.
--- @include "include/head_of"
--- @include "include/bytes_of"
--- @include "include/segment_at"
--- @include "include/segment_key"
local function walk_members(tag, group, backward, bound, limit)
  local segments = tonumber(redis.call('HGET', tag .. ':shape', group) or '1')
  local found = {}
  local looked_at = 0
  local h = backward and 4294967295 or 0
  if bound ~= '' then h = head_of(string.sub(bound, 2)) end
  while h >= 0 and h < 4294967296 and #found < limit do
    if looked_at == 300 then
      if backward then return found, '(' .. bytes_of(h + 1) end
      return found, '[' .. bytes_of(h)
    end
    looked_at = looked_at + 1
    local depth, prefix, from, to = segment_at(segments, h)
    local key = segment_key(tag, group, depth, prefix)
    local ids
    if backward then
      ids = redis.call('ZRANGE', key, bound == '' and '+' or bound, '-', 'BYLEX', 'REV',
        'LIMIT', 0, limit - #found)
      h = from - 1
    else
      ids = redis.call('ZRANGE', key, bound == '' and '-' or bound, '+', 'BYLEX',
        'LIMIT', 0, limit - #found)
      h = to
    end
    for i = 1, #ids do
      found[#found + 1] = ids[i]
    end
  end
  return found
end
