#!lua flags=allow-oom
--[[
Take an entry out of a directory's index, map of ids or list of intents, if the document of the
group that it names is still as it was read; or out of anything else, where it names no group.

KEYS[1]    entered   ZSET, SET or HASH
KEYS[2]    none      never exists
ARGV[1]    entry     member or field
ARGV[2]    type      zset, set or hash
ARGV[3]    number    integer  the group that it names, or '' where it names none
ARGV[4]    expected  the document that the caller read, or '' where there was none
Computed   <tag>:group:<number>
Returns    1 where it was taken out, else 0
Errors     STALE  the document changed since
Cost       O(log entries); safe to send twice
]]
--- @include "include/tag_of"
local key, entry, number, expected = KEYS[1], ARGV[1], ARGV[3], ARGV[4]
if number ~= '' then
  local held = redis.call('HGET', tag_of(key) .. ':group:' .. number, 'document') or ''
  if held ~= expected then return redis.error_reply('STALE group ' .. number) end
end
if ARGV[2] == 'zset' then return redis.call('ZREM', key, entry) end
if ARGV[2] == 'set' then return redis.call('SREM', key, entry) end
return redis.call('HDEL', key, entry)
