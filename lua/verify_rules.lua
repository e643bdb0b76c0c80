#!lua flags=no-writes
--[[
What the directory of an application knows of its definitions, dynamic groups and jobs, at one
moment.

KEYS[1]    rules      STRING  definitions, dynamic groups and settings, JSON
KEYS[2]    installing STRING  version that partitions are to be told of
KEYS[3]    weekly     STRING  the last Monday for which a job was queued, in microseconds
KEYS[4]    jobs       HASH    id -> letter of its state and job
KEYS[5]    built      HASH    number -> version of the rules by which a dynamic group was built, and
                              what was wanted and done of everything
KEYS[6]    none       never exists
Computed   none
Returns    {rules, installing, weekly, jobs, built}: as they are held, nil where there is none;
           of the last two fields and values, alternating
Errors     none
Cost       O(jobs + dynamic groups), about a hundred and a thousand
]]
local rules, installing, weekly, jobs, built = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local call = redis.call
return {
  call('GET', rules), call('GET', installing), call('GET', weekly),
  call('HGETALL', jobs), call('HGETALL', built),
}
