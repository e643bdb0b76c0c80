-- Note that a job over everything is wanted, from this version of the rules or moment (in us) on:
-- the next one that is taken is one.
--- @include "include/raised"
local function want_whole(built, at)
  redis.call('HSET', built, 'wanted', raised(redis.call('HGET', built, 'wanted'), at))
end
