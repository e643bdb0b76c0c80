#!lua
--[[
Queue a job of an application, unless one waits already: one over everything, or one that builds
the dynamic groups that are not built.

KEYS[1]    jobs      HASH  id -> letter of its state and job
KEYS[2]    built     HASH  which job over everything was wanted last, among others
KEYS[3]    none      never exists
ARGV[1]    id        of the job
ARGV[2]    document  JSON of the job
ARGV[3]    whole     0 or 1: it is to be over everything
ARGV[4]    now       integer  microseconds since 1970
Computed   none
Returns    the id of the job that waits
Errors     none
Cost       O(jobs); safe to send twice
]]
--- @include "include/queue_job"
--- @include "include/want_whole"
local jobs, built = KEYS[1], KEYS[2]
local id, document, whole, now = ARGV[1], ARGV[2], ARGV[3] == '1', ARGV[4]
local waits = queue_job(jobs, id, document)
if whole then want_whole(built, now) end
return waits
