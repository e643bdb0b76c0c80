#!lua flags=no-writes
--[[
What the directory of an application knows of its definitions and jobs, at one moment.

KEYS[1]    rules      STRING  definitions and settings, JSON
KEYS[2]    installing STRING  version that partitions are to be told of
KEYS[3]    weekly     STRING  the last Monday for which a job was queued, in microseconds
KEYS[4]    jobs       HASH    id -> letter of its state and job
KEYS[5]    none       never exists
Computed   none
Returns    {rules, installing, weekly, id, job, ...}: as they are held, nil where there is none
Errors     none
Cost       O(jobs), about a hundred
]]
local rules, installing, weekly, jobs = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local call = redis.call
local found = {call('GET', rules), call('GET', installing), call('GET', weekly)}
local held = call('HGETALL', jobs)
for i = 1, #held do found[3 + i] = held[i] end
return found
