-- What is kept of a profile, as scripts answer it: the fields of its record, its attributes, the
-- instances that it contributes to, the version of the rules here, and whether what follows from
-- its facts is behind: 1 where its contributions are, 2 where its dynamic groups are, where these
-- are looked at, 3 both.
--- @include "include/tag_of"
local function kept_of(profile, attributes, instances, rules, id, looks_at_groups)
  local call, tag = redis.call, tag_of(profile)
  local behind = call('ZSCORE', tag .. ':dirty', id) and 1 or 0
  if looks_at_groups and call('ZSCORE', tag .. ':unsettled', id) then behind = behind + 2 end
  return {
    call('HGETALL', profile),
    call('HGETALL', attributes),
    call('HGETALL', instances),
    call('GET', rules) or '0',
    behind,
  }
end
