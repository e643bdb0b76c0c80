#!lua
--[[
Leave profiles to the worker: what follows from their facts is behind.

KEYS[1]    dirty     ZSET  profiles whose derived data is behind
KEYS[2]    none      never exists
ARGV[1]    now       integer  microseconds since 1970
ARGV[2..]  mixed ids
Computed   <tag>:dirty
Returns    how many they are
Errors     none
Cost       O(ARGV), about 1 us each; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/mark_dirty"
local dirty, now = KEYS[1], ARGV[1]
local tag = tag_of(dirty)
for i = 2, #ARGV do mark_dirty(tag, ARGV[i], now) end
return #ARGV - 1
