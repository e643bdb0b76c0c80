-- Note of profiles that `names`, which rules name, changed: memberships of dynamic groups have yet
-- to follow, since `now` (in microseconds) or, where that is noted already, since then. Whoever
-- writes a fact calls it in the same step, with what `named_of` leaves of what it changed.
local function mark_unsettled(tag, ids, names, now)
  if #names == 0 or #ids == 0 then return end
  local waiting = {'NX'}
  for i = 1, #ids do
    local changed = tag .. ':changed:' .. ids[i]
    for j = 1, #names, 2000 do
      redis.call('SADD', changed, unpack(names, j, math.min(j + 1999, #names)))
    end
    waiting[#waiting + 1] = now
    waiting[#waiting + 1] = ids[i]
    if #waiting > 2000 or i == #ids then
      redis.call('ZADD', tag .. ':unsettled', unpack(waiting))
      waiting = {'NX'}
    end
  end
end
