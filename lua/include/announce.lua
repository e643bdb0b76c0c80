-- Raise the directory's version and tell every process which group changed.
local function announce(version, group)
  local raised = redis.call('INCR', version)
  redis.call('PUBLISH', 'belong:changes',
    string.match(version, '^{([^}]*)}') .. ' ' .. group .. ' ' .. string.format('%d', raised))
end
