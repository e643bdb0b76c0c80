#!lua
--[[
Leave rules of dynamic groups to the worker: profiles are noted as to be looked at by them.

KEYS[1]    unsettled ZSET  profiles of which something changed that rules have yet to follow
KEYS[2]    none      never exists
ARGV[1]    now       integer  microseconds since 1970
ARGV[2]    profiles  integer  how many mixed ids follow
ARGV[3..]  the mixed ids, then numbers of groups
Computed   <tag>:changed:<id>
Returns    how many profiles they are
Errors     none
Cost       O(profiles x groups), about 1 us each; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/mark_unsettled"
local unsettled = KEYS[1]
local now, count = ARGV[1], tonumber(ARGV[2])
local ids, names = {}, {}
for i = 3, 2 + count do ids[#ids + 1] = ARGV[i] end
for i = 3 + count, #ARGV do names[#names + 1] = '\0=' .. ARGV[i] end
mark_unsettled(tag_of(unsettled), ids, names, now)
return count
