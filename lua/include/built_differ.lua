-- An error reply where a job changed since it was read, or where the rules are not of the version
-- that the caller goes by; nil where both are.
--- @include "include/rules_version"
local function built_differ(jobs, rules, id, old, version)
  if redis.call('HGET', jobs, id) ~= old then return redis.error_reply('STALE job ' .. id) end
  if rules_version(rules) ~= version then return redis.error_reply('CONFLICT rules') end
  return nil
end
