-- Forget when attributes were deleted, of `deleted` ({name, time as a number}, ...): where that was
-- before a moment, and the oldest where there are more than `limit`.
local function drop_deletions(attributes, deleted, before, limit)
  if #deleted > limit then
    table.sort(deleted, function(a, b) return a[2] > b[2] end)
  end
  local dropped = {}
  for i = 1, #deleted do
    if i > limit or deleted[i][2] < before then dropped[#dropped + 1] = deleted[i][1] end
  end
  for i = 1, #dropped, 2000 do
    redis.call('HDEL', attributes, unpack(dropped, i, math.min(i + 1999, #dropped)))
  end
end
