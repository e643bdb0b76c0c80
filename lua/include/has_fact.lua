-- Is there any fact about a profile: a static membership, or a record? The field `d` may hold
-- anything here.
local function has_fact(tag, id)
  if redis.call('EXISTS', tag .. ':profile:' .. id) == 1 then return true end
  local key = tag .. ':m:' .. id
  local size = redis.call('HLEN', key)
  if size == 0 then return false end
  local derived = redis.call('HGET', key, 'd')
  if not derived then return true end
  return size - 1 - (tonumber(derived) or 0) > 0
end
