#!lua flags=allow-oom
--[[
Remove a group's document, ids and indexes, if nobody changed it since it was read, and leave the
intent to delete its memberships.

KEYS[1]    group      HASH    document of the group, with its version
KEYS[2]    ids        HASH    id -> number
KEYS[3]    custom_ids HASH    custom id -> number
KEYS[4]    intents    ZSET    numbers whose state is not yet installed everywhere
KEYS[5]    deleting   ZSET    numbers being swept -> version of the deletion
KEYS[6]    version    STRING  raised by every change of the directory
KEYS[7..]  index      ZSET    indexes that the group leaves; the last key never exists
ARGV[1]    number     integer
ARGV[2]    expected   integer  version that the caller read
ARGV[3]    id         16 bytes of the UUID
ARGV[4]    custom_id  string, or ''
ARGV[5]    now        integer  microseconds since 1970
Computed   none
Returns    the version of the deletion
Errors     STALE  the document changed since, or is gone
Cost       O(indexes)
]]
--- @include "include/raised"
--- @include "include/announce"
local group, ids, custom_ids, intents, deleting = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local version = KEYS[6]
local number, expected, id, custom_id, now = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local call = redis.call
local held = call('HGET', group, 'version')
if held ~= expected then return redis.error_reply('STALE group ' .. number) end
local deleted = raised(held, now)
call('ZADD', deleting, deleted, number)
call('DEL', group)
call('HDEL', ids, id)
if custom_id ~= '' then call('HDEL', custom_ids, custom_id) end
for i = 7, #KEYS - 1 do
  call('ZREM', KEYS[i], number)
end
call('ZREM', intents, number)
announce(version, number)
return deleted
