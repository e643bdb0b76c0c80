-- Enter a group into the indexes KEYS[first..last] of its directory.
local function index_group(group, first, last)
  for i = first, last do
    redis.call('ZADD', KEYS[i], group, group)
  end
end
