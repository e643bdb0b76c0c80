#!lua
--[[
Replace the document of a group by one that says something else of its rule tree, if it is still as
it was read. Its entries in ids and indexes are left as they are.

KEYS[1]    group     HASH    document of the group, with its version
KEYS[2]    version   STRING  raised by every change of the directory
KEYS[3]    none      never exists
ARGV[1]    number    integer
ARGV[2]    old       the document as it was read
ARGV[3]    new       the document
ARGV[4]    now       integer  microseconds since 1970
Computed   none
Returns    1 where it was replaced, 0 where it changed since
Errors     none
Cost       O(1); safe to send twice
]]
--- @include "include/raised"
--- @include "include/announce"
local group, version = KEYS[1], KEYS[2]
local number, old, new, now = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local held = redis.call('HMGET', group, 'document', 'version')
if held[1] ~= old then return 0 end
redis.call('HSET', group, 'document', new, 'version', raised(held[2] or '0', now))
announce(version, number)
return 1
