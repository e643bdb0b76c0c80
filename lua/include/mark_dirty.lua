-- Note that what follows from a profile's facts is behind, since `now` (in microseconds) or, where
-- it is noted already, since then. Whoever changes an attribute that `is_watched` names calls it in
-- the step that raises `seq`; so does whoever gives a profile its mpid, where anything is watched:
-- contributions are in the order of mpids.
local function mark_dirty(tag, id, now)
  redis.call('ZADD', tag .. ':dirty', 'NX', now, id)
end
