-- Raise the directory's version and tell every process which group changed.
local function announce(version, group)
  local raised = redis.call('INCR', version)
  -- Everything is written by now: a user who may not publish must not make a failure of it. Who
  -- does not hear the message reads the version once a second.
  redis.pcall('PUBLISH', 'belong:changes',
    string.match(version, '^{([^}]*)}') .. ' ' .. group .. ' ' .. string.format('%d', raised))
end
