#!lua flags=no-writes
--[[
What there is to do for an application, without what is done: the version of its rules, what of it
partitions are still to be told, and jobs that wait or run.

KEYS[1]    rules      STRING  definitions, dynamic groups and settings, JSON
KEYS[2]    installing STRING  version that partitions are to be told of
KEYS[3]    jobs       HASH    id -> letter of its state and job
KEYS[4]    weekly     STRING  the last Monday for which a job was queued, in microseconds
KEYS[5]    none       never exists
Computed   none
Returns    {version, installing, weekly, id, job, id, ...}: numbers as text, '0' where there is none
Errors     none
Cost       O(jobs)
]]
--- @include "include/rules_version"
local rules, installing, jobs, weekly = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local call = redis.call
local found = {
  rules_version(rules),
  call('GET', installing) or '0',
  call('GET', weekly) or '0',
}
local held = call('HGETALL', jobs)
for i = 2, #held, 2 do
  local letter = string.sub(held[i], 1, 1)
  if letter == 'q' or letter == 'r' or letter == 's' then
    found[#found + 1] = held[i - 1]
    found[#found + 1] = held[i]
  end
end
return found
