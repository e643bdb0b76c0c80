#!lua flags=no-writes
--[[
The first page of the members of an active group that has all of them in this partition, with what a
member list shows of them.

KEYS[1]    state     HASH  state of groups in this partition
KEYS[2]    shape     HASH  segments of groups in this partition
KEYS[3]    count     HASH  members of groups in this partition
KEYS[4]    none      never exists
ARGV[1]    group     integer  the group's number
ARGV[2]    limit     integer  rows at most; 125 stay under 2 ms
Computed   <tag>:g:<group>:<depth>:<prefix>, <tag>:m:<id>, <tag>:profile:<id>
Returns    {count, more, ids, times, names}: members in all; 1 where a row follows the last one,
           else 0; packed mixed ids in ascending order; when each joined, with spaces between;
           nickname and custom id of each in turn, none at all where nobody has a record. Nil of a
           group that is not active, or that is being emptied
Errors     none
Cost       O(limit), about 1 us a row, 2 us more where there are records
]]
--- @include "include/tag_of"
--- @include "include/state_of"
--- @include "include/walk_members"
--- @include "include/count_existing"
local state, count = KEYS[1], KEYS[3]
local group, limit = ARGV[1], tonumber(ARGV[2])
local call = redis.call
if state_of(state, group) ~= 'a' then return false end
local tag = tag_of(state)
local ids, left = walk_members(tag, group, false, '', limit + 1)
if left then return false end
local more = #ids > limit and 1 or 0
if more == 1 then ids[#ids] = nil end
local times, records, names = {}, {}, {}
for i = 1, #ids do
  times[i] = call('HGET', tag .. ':m:' .. ids[i], group) or '0'
  records[i] = tag .. ':profile:' .. ids[i]
end
if count_existing(records) > 0 then
  for i = 1, #ids do
    local profile = call('HMGET', records[i], 'nickname', 'custom_id')
    names[2 * i - 1] = profile[1]
    names[2 * i] = profile[2]
  end
end
return {
  call('HGET', count, group) or '0', more, table.concat(ids), table.concat(times, ' '), names,
}
