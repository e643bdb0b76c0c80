#!lua
--[[
Create a dynamic group, as `create_group` does, together with the rules of the application that name
it: both or neither. Leaves word that the partitions are to be told of the rules, and queues the job
that finds the group's members.

KEYS[1]    group      HASH    document of the group, with its version
KEYS[2]    ids        HASH    id -> number
KEYS[3]    custom_ids HASH    custom id -> number
KEYS[4]    intents    ZSET    numbers whose state is not yet installed everywhere -> version
KEYS[5]    version    STRING  raised by every change of the directory
KEYS[6]    rules      STRING  definitions, dynamic groups and settings, JSON
KEYS[7]    installing STRING  version of the rules that partitions are to be told of
KEYS[8]    jobs       HASH    id -> letter of its state and job
KEYS[9..]  index      ZSET    indexes that the group enters; the last key never exists
ARGV[1]    number     integer
ARGV[2]    id         16 bytes of the UUID
ARGV[3]    custom_id  string, or ''
ARGV[4]    document   JSON
ARGV[5]    now        integer  microseconds since 1970
ARGV[6]    active     0 or 1
ARGV[7]    old        the rules as they were read
ARGV[8]    new        the rules of the new version
ARGV[9]    rules_at   integer  the new version of the rules
ARGV[10]   job_id     of the job to queue
ARGV[11]   job        JSON of that job
ARGV[12..] leaf       id (16 bytes) and number of each static group that the tree names, in turn
Computed   none
Returns    the document's version
Errors     TAKEN  the id, the custom id or the number is in use
           STALE  the rules changed since they were read, or a group that the tree names is gone
Cost       O(indexes + leaves + jobs + size of the rules); safe to send twice
]]
--- @include "include/insert_group"
--- @include "include/leaves_gone"
--- @include "include/change_rules"
local group, ids, custom_ids, intents, version = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local rules, installing, jobs = KEYS[6], KEYS[7], KEYS[8]
local created = {
  number = ARGV[1], id = ARGV[2], custom_id = ARGV[3], document = ARGV[4], now = ARGV[5],
  active = ARGV[6] == '1',
}
local old, new, rules_at, job_id, job = ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11]
local call = redis.call
if call('HGET', ids, created.id) == created.number then return call('HGET', group, 'version') end
if (call('GET', rules) or '') ~= old then return redis.error_reply('STALE rules') end
if leaves_gone(ids, 12) then return redis.error_reply('STALE leaves') end
local made = insert_group(group, ids, custom_ids, intents, version, created, 9)
if type(made) ~= 'string' then return made end
change_rules(rules, installing, jobs, old, new, rules_at, job_id, job)
return made
