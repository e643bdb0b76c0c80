#!lua
--[[
Raise the version of a group's document, and leave the intent to install its state everywhere under
that version. The document stays as it is.

KEYS[1]    group     HASH    document of the group, with its version
KEYS[2]    intents   ZSET    numbers whose state is not yet installed everywhere -> version
KEYS[3]    version   STRING  raised by every change of the directory
KEYS[4]    none      never exists
ARGV[1]    number    integer
ARGV[2]    expected  the document that the caller read
ARGV[3]    above     integer  the version that it has to exceed: the highest of its states
ARGV[4]    now       integer  microseconds since 1970
Computed   none
Returns    the document's new version
Errors     STALE  the document changed since, or is gone
Cost       O(1)
]]
--- @include "include/raised"
--- @include "include/announce"
local group, intents, version = KEYS[1], KEYS[2], KEYS[3]
local number, expected, above, now = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local held = redis.call('HMGET', group, 'document', 'version')
if held[1] ~= expected then return redis.error_reply('STALE group ' .. number) end
local last = held[2] and string.match(held[2], '^%d+$') or '0'
if tonumber(above) > tonumber(last) then last = above end
local new_version = raised(last, now)
redis.call('HSET', group, 'version', new_version)
redis.call('ZADD', intents, new_version, number)
announce(version, number)
return new_version
