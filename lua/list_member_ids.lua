#!lua flags=no-writes
--[[
A part of the ids of a group's members in this partition, in their order, from one bound on.

KEYS[1]    state     HASH  state of groups in this partition
KEYS[2]    count     HASH  members of groups in this partition
KEYS[3]    shape     HASH  segments of groups in this partition
KEYS[4]    erasing   SET   profiles being erased
KEYS[5]    none      never exists
ARGV[1]    group     integer  the group's number
ARGV[2]    bound     '' or an id after ( or [, where the part begins, as ZRANGE BYLEX writes it
ARGV[3]    limit     integer  ids at most
Computed   <tag>:g:<group>:<depth>:<prefix>
Returns    {members, left, ids, erasing}: the group's count in this partition; the bound of the next
           part, '' after the last one; packed mixed ids of this part, and those of them that are
           being erased
Errors     INACTIVE  the group is inactive
           DELETED   the group is deleted
Cost       O(limit), about 0.5 us an id
]]
--- @include "include/tag_of"
--- @include "include/require_active"
--- @include "include/walk_members"
local state, count, erasing = KEYS[1], KEYS[2], KEYS[4]
local group, bound, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
local call = redis.call
local refused = require_active(state, group)
if refused then return refused end
local ids, left = walk_members(tag_of(state), group, false, bound, limit)
if #ids == limit then left = '(' .. ids[limit] end
local going = {}
if call('EXISTS', erasing) == 1 then
  for i = 1, #ids do
    if call('SISMEMBER', erasing, ids[i]) == 1 then going[#going + 1] = ids[i] end
  end
end
local members = tonumber(call('HGET', count, group) or '0')
return {members, left or '', table.concat(ids), table.concat(going)}
