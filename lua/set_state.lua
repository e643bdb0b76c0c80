#!lua flags=allow-oom
--[[
Install the state of a group in this partition, unless a newer one is there.

KEYS[1]    state     HASH  state of groups in this partition
KEYS[2]    none      never exists
ARGV[1]    group     integer  the group's number
ARGV[2]    version   integer  the document version that the state belongs to
ARGV[3]    letter    a active, i inactive, d deleted, g deleted and swept
Computed   none
Returns    1 where it was written, 0 where a newer state was there
Errors     none
Cost       O(1); safe to send twice
]]
local state = KEYS[1]
local group, version, letter = ARGV[1], ARGV[2], ARGV[3]
local held = redis.call('HGET', state, group)
if held and tonumber(string.match(held, '^%d+')) >= tonumber(version) then return 0 end
redis.call('HSET', state, group, version .. ' ' .. letter)
return 1
