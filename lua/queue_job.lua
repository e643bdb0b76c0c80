#!lua
--[[
Queue a job of an application, unless one waits already.

KEYS[1]    jobs      HASH  id -> letter of its state and job
KEYS[2]    none      never exists
ARGV[1]    id        of the job
ARGV[2]    document  JSON of the job
Computed   none
Returns    the id of the job that waits
Errors     none
Cost       O(jobs); safe to send twice
]]
--- @include "include/queue_job"
return queue_job(KEYS[1], ARGV[1], ARGV[2])
