#!lua
--[[
Replace a group's document, its custom id and its indexes, if nobody changed it since it was read. A
change of `is_active` leaves an intent to install that state in every partition.

KEYS[1]    group      HASH    document of the group, with its version
KEYS[2]    custom_ids HASH    custom id -> number
KEYS[3]    intents    ZSET    numbers whose state is not yet installed everywhere -> version
KEYS[4]    version    STRING  raised by every change of the directory
KEYS[5..]  index      ZSET    indexes that the group leaves, then those it enters; the last key
                              never exists
ARGV[1]    number     integer
ARGV[2]    expected   integer  version that the caller read
ARGV[3]    old_custom_id string, or ''
ARGV[4]    custom_id  string, or ''
ARGV[5]    document   JSON
ARGV[6]    now        integer  microseconds since 1970
ARGV[7]    leaving    integer  how many of the indexes it leaves
ARGV[8]    switched   0 or 1: is_active changes
Computed   none
Returns    the document's new version
Errors     STALE  the document changed since, or is gone
           TAKEN  the custom id is in use
Cost       O(indexes)
]]
--- @include "include/raised"
--- @include "include/index_group"
--- @include "include/announce"
local group, custom_ids, intents, version = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local number, expected, old_custom_id, custom_id = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local document, now, leaving, switched = ARGV[5], ARGV[6], tonumber(ARGV[7]), ARGV[8] == '1'
local call = redis.call
local held = call('HGET', group, 'version')
if held ~= expected then return redis.error_reply('STALE group ' .. number) end
if custom_id ~= '' and custom_id ~= old_custom_id
  and call('HEXISTS', custom_ids, custom_id) == 1 then
  return redis.error_reply('TAKEN custom_id')
end
local new_version = raised(held, now)
call('HSET', group, 'document', document, 'version', new_version)
if custom_id ~= old_custom_id then
  if old_custom_id ~= '' then call('HDEL', custom_ids, old_custom_id) end
  if custom_id ~= '' then call('HSET', custom_ids, custom_id, number) end
end
for i = 5, 4 + leaving do
  call('ZREM', KEYS[i], number)
end
index_group(number, 5 + leaving, #KEYS - 1)
if switched then call('ZADD', intents, new_version, number) end
announce(version, number)
return new_version
