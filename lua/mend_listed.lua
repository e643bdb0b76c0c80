#!lua
--[[
List an instance with a profile that contributes to it, so that it is held against its facts. Not
while the profile is being erased.

KEYS[1]    erasing   SET   profiles being erased
KEYS[2]    none      never exists
ARGV[1]    instance  its id
ARGV[2]    number    integer  of its definition
ARGV[3]    now       integer  microseconds since 1970
ARGV[4..]  id        mixed ids; at most 200
Computed   <tag>:instances:<id>, <tag>:dirty
Returns    how many list it now and did not before
Errors     none
Cost       O(ids), about 2 us each; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/mark_dirty"
local erasing = KEYS[1]
local iid, number, now = ARGV[1], ARGV[2], ARGV[3]
local call = redis.call
local tag = tag_of(erasing)
local listed = 0
for i = 4, #ARGV do
  local id = ARGV[i]
  if call('SISMEMBER', erasing, id) == 0 then
    listed = listed + call('HSETNX', tag .. ':instances:' .. id, iid, number .. ' 0 0 ')
    mark_dirty(tag, id, now)
  end
end
return listed
