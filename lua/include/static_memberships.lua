-- How many groups a profile was written into: all its memberships less the derived ones, which the
-- field `d` counts.
local function static_memberships(memberships)
  local size = redis.call('HLEN', memberships)
  if size == 0 then return 0 end
  local derived = redis.call('HGET', memberships, 'd')
  if not derived then return size end
  return size - 1 - tonumber(derived)
end
