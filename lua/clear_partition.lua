#!lua flags=allow-oom
--[[
Remove what a partition keeps without any profile: what it knows of rules, and what is noted of
profiles and instances that are gone.

KEYS[1..]  key       what is kept as a whole; the last key never exists
Computed   none
Returns    how many of them there were
Errors     none
Cost       O(keys), memory is freed in the background; safe to send twice
]]
local removed = 0
for i = 1, #KEYS - 1 do
  removed = removed + redis.call('UNLINK', KEYS[i])
end
return removed
