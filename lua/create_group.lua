#!lua
--[[
Create a group's document with its ids and indexes, under a number that the caller reserved and
probed. An inactive group is created with an intent to install that state in every partition; one
that a query is saved as, with the job that fills it.

KEYS[1]    group      HASH    document of the group, with its version
KEYS[2]    ids        HASH    id -> number
KEYS[3]    custom_ids HASH    custom id -> number
KEYS[4]    intents    ZSET    numbers whose state is not yet installed everywhere -> version
KEYS[5]    version    STRING  raised by every change of the directory
KEYS[6]    jobs       HASH    id -> letter of its state and job
KEYS[7..]  index      ZSET    indexes that the group enters; the last key never exists
ARGV[1]    number     integer
ARGV[2]    id         16 bytes of the UUID
ARGV[3]    custom_id  string, or ''
ARGV[4]    document   JSON
ARGV[5]    now        integer  microseconds since 1970
ARGV[6]    active     0 or 1
ARGV[7]    job_id     of the job that fills it, or ''
ARGV[8]    job        JSON of that job
ARGV[9]    most       integer  jobs that fill groups may wait at a time
Computed   none
Returns    the document's version
Errors     TAKEN  the id, the custom id or the number is in use
           CONFLICT  so many jobs wait
Cost       O(indexes), with a job O(jobs); safe to send twice
]]
--- @include "include/insert_group"
local group, ids, custom_ids, intents, version = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local jobs = KEYS[6]
local new = {
  number = ARGV[1], id = ARGV[2], custom_id = ARGV[3], document = ARGV[4], now = ARGV[5],
  active = ARGV[6] == '1',
}
local job_id, job, most = ARGV[7], ARGV[8], tonumber(ARGV[9])
local call = redis.call
if job_id ~= '' and call('HGET', ids, new.id) ~= new.number then
  local held, waiting = call('HVALS', jobs), 0
  for i = 1, #held do
    if string.byte(held[i]) == 115 then waiting = waiting + 1 end
  end
  if waiting >= most then return redis.error_reply('CONFLICT jobs') end
end
local fresh = call('EXISTS', group) == 0
local made = insert_group(group, ids, custom_ids, intents, version, new, 7)
if job_id ~= '' and fresh and type(made) == 'string' then
  call('HSET', jobs, job_id, 's ' .. job)
end
return made
