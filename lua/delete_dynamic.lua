#!lua flags=allow-oom
--[[
Remove a dynamic group, as `delete_group` does, together with its place in the rules of the
application: both or neither. Leaves word that the partitions are to be told.

KEYS[1]    group      HASH    document of the group, with its version
KEYS[2]    ids        HASH    id -> number
KEYS[3]    custom_ids HASH    custom id -> number
KEYS[4]    intents    ZSET    numbers whose state is not yet installed everywhere
KEYS[5]    deleting   ZSET    numbers being swept -> version of the deletion
KEYS[6]    version    STRING  raised by every change of the directory
KEYS[7]    rules      STRING  definitions, dynamic groups and settings, JSON
KEYS[8]    installing STRING  version of the rules that partitions are to be told of
KEYS[9]    built      HASH    number -> version of the rules by which a dynamic group was built
KEYS[10..] index      ZSET    indexes that the group leaves; the last key never exists
ARGV[1]    number     integer
ARGV[2]    expected   integer  version that the caller read
ARGV[3]    id         16 bytes of the UUID
ARGV[4]    custom_id  string, or ''
ARGV[5]    now        integer  microseconds since 1970
ARGV[6]    old        the rules as they were read
ARGV[7]    new        the rules of the new version
ARGV[8]    rules_at   integer  the new version of the rules
Computed   none
Returns    the version of the deletion
Errors     STALE  the document or the rules changed since, or it is gone
Cost       O(indexes + size of the rules)
]]
--- @include "include/remove_group"
--- @include "include/change_rules"
local group, ids, custom_ids, intents, deleting = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local version, rules, installing, built = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local gone = {
  number = ARGV[1], expected = ARGV[2], id = ARGV[3], custom_id = ARGV[4], now = ARGV[5],
}
local old, new, rules_at = ARGV[6], ARGV[7], ARGV[8]
if (redis.call('GET', rules) or '') ~= old then return redis.error_reply('STALE rules') end
local deleted = remove_group(group, ids, custom_ids, intents, deleting, version, gone, 10)
if type(deleted) ~= 'string' then return deleted end
change_rules(rules, installing, '', old, new, rules_at, '', '')
redis.call('HDEL', built, gone.number)
return deleted
