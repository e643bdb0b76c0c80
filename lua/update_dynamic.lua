#!lua
--[[
Replace the document of a dynamic group whose rule tree changes, as `update_group` does, together
with the rules of the application: both or neither. Leaves word that the partitions are to be told,
and queues the job that finds the group's members anew.

KEYS[1]    group      HASH    document of the group, with its version
KEYS[2]    custom_ids HASH    custom id -> number
KEYS[3]    intents    ZSET    numbers whose state is not yet installed everywhere -> version
KEYS[4]    version    STRING  raised by every change of the directory
KEYS[5]    ids        HASH    id -> number
KEYS[6]    rules      STRING  definitions, dynamic groups and settings, JSON
KEYS[7]    installing STRING  version of the rules that partitions are to be told of
KEYS[8]    jobs       HASH    id -> letter of its state and job
KEYS[9..]  index      ZSET    indexes that the group leaves, then those it enters; the last key
                              never exists
ARGV[1]    number     integer
ARGV[2]    expected   integer  version that the caller read
ARGV[3]    old_custom_id string, or ''
ARGV[4]    custom_id  string, or ''
ARGV[5]    document   JSON
ARGV[6]    now        integer  microseconds since 1970
ARGV[7]    leaving    integer  how many of the indexes it leaves
ARGV[8]    switched   0 or 1: is_active changes
ARGV[9]    old        the rules as they were read
ARGV[10]   new        the rules of the new version
ARGV[11]   rules_at   integer  the new version of the rules
ARGV[12]   job_id     of the job to queue
ARGV[13]   job        JSON of that job
ARGV[14..] leaf       id (16 bytes) and number of each static group that the tree names, in turn
Computed   none
Returns    the document's new version
Errors     STALE  the document or the rules changed since, or a group that the tree names is gone
           TAKEN  the custom id is in use
Cost       O(indexes + leaves + jobs + size of the rules)
]]
--- @include "include/replace_group"
--- @include "include/leaves_gone"
--- @include "include/change_rules"
local group, custom_ids, intents, version = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local ids, rules, installing, jobs = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local changed = {
  number = ARGV[1], expected = ARGV[2], old_custom_id = ARGV[3], custom_id = ARGV[4],
  document = ARGV[5], now = ARGV[6], leaving = tonumber(ARGV[7]), switched = ARGV[8] == '1',
}
local old, new, rules_at, job_id, job = ARGV[9], ARGV[10], ARGV[11], ARGV[12], ARGV[13]
if (redis.call('GET', rules) or '') ~= old then return redis.error_reply('STALE rules') end
if leaves_gone(ids, 14) then return redis.error_reply('STALE leaves') end
local made = replace_group(group, custom_ids, intents, version, changed, 9)
if type(made) ~= 'string' then return made end
change_rules(rules, installing, jobs, old, new, rules_at, job_id, job)
return made
