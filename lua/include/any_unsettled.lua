-- Is any of these profiles noted as unsettled: do memberships of dynamic groups have yet to follow?
local function any_unsettled(tag, ids)
  for i = 1, #ids, 2000 do
    local since = redis.call('ZMSCORE', tag .. ':unsettled',
      unpack(ids, i, math.min(i + 1999, #ids)))
    for j = 1, #since do
      if since[j] then return true end
    end
  end
  return false
end
