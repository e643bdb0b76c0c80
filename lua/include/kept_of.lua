-- What is kept of a profile, as scripts answer it: the fields of its record and its attributes.
local function kept_of(profile, attributes)
  return {redis.call('HGETALL', profile), redis.call('HGETALL', attributes)}
end
