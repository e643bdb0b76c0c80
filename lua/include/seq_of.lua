-- The `seq` of a profile's facts as a string: '0' of a record without one, '' where there is none.
local function seq_of(tag, id)
  local held = redis.call('HMGET', tag .. ':profile:' .. id, 'seq', 'created_at')
  return held[1] or (held[2] and '0') or ''
end
