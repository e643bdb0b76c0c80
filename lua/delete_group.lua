#!lua flags=allow-oom
--[[
Remove a group's document, ids and indexes, if nobody changed it since it was read, and leave the
intent to delete its memberships. Only under the rules that the caller looked at: none of them names
the group.

KEYS[1]    group      HASH    document of the group, with its version
KEYS[2]    ids        HASH    id -> number
KEYS[3]    custom_ids HASH    custom id -> number
KEYS[4]    intents    ZSET    numbers whose state is not yet installed everywhere
KEYS[5]    deleting   ZSET    numbers being swept -> version of the deletion
KEYS[6]    version    STRING  raised by every change of the directory
KEYS[7]    rules      STRING  definitions, dynamic groups and settings, JSON; none in development
KEYS[8..]  index      ZSET    indexes that the group leaves; the last key never exists
ARGV[1]    number     integer
ARGV[2]    expected   integer  version that the caller read
ARGV[3]    id         16 bytes of the UUID
ARGV[4]    custom_id  string, or ''
ARGV[5]    now        integer  microseconds since 1970
ARGV[6]    rules_at   integer  version of the rules that do not name the group
Computed   none
Returns    the version of the deletion
Errors     STALE  the document or the rules changed since, or it is gone
Cost       O(indexes)
]]
--- @include "include/remove_group"
--- @include "include/rules_version"
local group, ids, custom_ids, intents, deleting = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local version, rules = KEYS[6], KEYS[7]
local gone = {
  number = ARGV[1], expected = ARGV[2], id = ARGV[3], custom_id = ARGV[4], now = ARGV[5],
}
if rules_version(rules) ~= ARGV[6] then return redis.error_reply('STALE rules') end
return remove_group(group, ids, custom_ids, intents, deleting, version, gone, 8)
