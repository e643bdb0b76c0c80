-- An error reply where the rules in force in this slot are not of the version that the caller goes
-- by; nil where they are.
local function rules_differ(rules, version)
  local held = redis.call('GET', rules) or '0'
  if held == version then return nil end
  return redis.error_reply('STALE ' .. held)
end
