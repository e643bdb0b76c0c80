#!lua flags=allow-oom
--[[
Replace a job, if nobody changed it since it was read, and forget jobs that ended long ago. On a
full store, too: what makes room may have to go on.

KEYS[1]    jobs      HASH  id -> letter of its state and job
KEYS[2]    none      never exists
ARGV[1]    id        of the job
ARGV[2]    old       the job as it was read
ARGV[3]    new       what it becomes
ARGV[4..]  forgotten ids of jobs to forget
Computed   none
Returns    1
Errors     STALE  the job changed since it was read, or is forgotten
Cost       O(jobs to forget)
]]
local jobs = KEYS[1]
local id, old, new = ARGV[1], ARGV[2], ARGV[3]
if redis.call('HGET', jobs, id) ~= old then return redis.error_reply('STALE job ' .. id) end
redis.call('HSET', jobs, id, new)
for i = 4, #ARGV do
  redis.call('HDEL', jobs, ARGV[i])
end
return 1
