#!lua
--[[
Queue the job of a Monday, unless that one was queued already, or a later one.

KEYS[1]    jobs      HASH    id -> letter of its state and job
KEYS[2]    weekly    STRING  the last Monday for which a job was queued, in microseconds
KEYS[3]    built     HASH    which job over everything was wanted last, among others
KEYS[4]    none      never exists
ARGV[1]    monday    integer  microseconds since 1970
ARGV[2]    id        of the job
ARGV[3]    document  JSON of the job
ARGV[4]    now       integer  microseconds since 1970
Computed   none
Returns    the id of the job that waits, or '' where that Monday is done with
Errors     none
Cost       O(jobs); safe to send twice
]]
--- @include "include/queue_job"
--- @include "include/want_whole"
local jobs, weekly, built = KEYS[1], KEYS[2], KEYS[3]
local monday, id, document, now = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local held = redis.call('GET', weekly)
if held and tonumber(held) >= tonumber(monday) then return '' end
local waits = queue_job(jobs, id, document)
redis.call('SET', weekly, monday)
want_whole(built, now)
return waits
