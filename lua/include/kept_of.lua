-- What is kept of a profile, as scripts answer it: the fields of its record, its attributes, the
-- instances that it contributes to, the version of the rules here, and whether what follows from
-- its facts is behind.
--- @include "include/tag_of"
local function kept_of(profile, attributes, instances, rules, id)
  local call = redis.call
  return {
    call('HGETALL', profile),
    call('HGETALL', attributes),
    call('HGETALL', instances),
    call('GET', rules) or '0',
    call('ZSCORE', tag_of(profile) .. ':dirty', id) and 1 or 0,
  }
end
