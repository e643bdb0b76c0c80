-- The version of the rules that a directory keeps, as text; '0' where it keeps none.
local function rules_version(rules)
  return string.match(redis.call('GETRANGE', rules, 0, 40), '^{"version":(%d+)') or '0'
end
