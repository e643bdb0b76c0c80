#!lua
--[[
Queue the job of a Monday, unless that one was queued already, or a later one.

KEYS[1]    jobs      HASH    id -> letter of its state and job
KEYS[2]    weekly    STRING  the last Monday for which a job was queued, in microseconds
KEYS[3]    none      never exists
ARGV[1]    monday    integer  microseconds since 1970
ARGV[2]    id        of the job
ARGV[3]    document  JSON of the job
Computed   none
Returns    the id of the job that waits, or '' where that Monday is done with
Errors     none
Cost       O(jobs); safe to send twice
]]
--- @include "include/queue_job"
local jobs, weekly = KEYS[1], KEYS[2]
local monday, id, document = ARGV[1], ARGV[2], ARGV[3]
local held = redis.call('GET', weekly)
if held and tonumber(held) >= tonumber(monday) then return '' end
local waits = queue_job(jobs, id, document)
redis.call('SET', weekly, monday)
return waits
