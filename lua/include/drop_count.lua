-- Take a group without members out of a partition's counts; with the last one the filler goes, too.
local function drop_count(counts, group)
  redis.call('HDEL', counts, group)
  if redis.call('HLEN', counts) == 1 then redis.call('HDEL', counts, '-') end
end
