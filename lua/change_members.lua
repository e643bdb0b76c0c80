#!lua
--[[
Add profiles to static groups and remove them, in steps that are done one after another, each both
directions at once. A profile enters group 0 with its first fact, and leaves it with its last. A
step for a group that is not active does nothing.

KEYS[1]    state     HASH  state of groups in this partition
KEYS[2]    count     HASH  members of groups in this partition
KEYS[3]    shape     HASH  segments of groups in this partition
KEYS[4]    erasing   SET   profiles being erased
KEYS[5]    none      never exists
ARGV[1]    joined_at integer  microseconds since 1970
ARGV[2]    limit     integer  static groups that one profile may be in
ARGV[3..]  kind, group, ids, repeated: + to add, ! to add those that have a record, - to remove; the
           group's number; packed mixed ids, 16 bytes each, ascending, none twice
Computed   <tag>:m:<id>, <tag>:g:<group>:<depth>:<prefix>, the same of group 0, <tag>:profile:<id>,
           <tag>:named, <tag>:changed:<id>, <tag>:unsettled
Returns    string, a letter per id in the order given: + added, = already a member, L over the
           limit, U unknown and not to be added, - removed, . was no member, E being erased, N the
           group is inactive or deleted; after them ! where rules have yet to follow
Errors     none
Cost       O(ids), about 10 us each, and 5 us for each step; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/state_of"
--- @include "include/named_of"
--- @include "include/add_ids"
--- @include "include/remove_ids"
local state, erasing = KEYS[1], KEYS[4]
local joined_at, limit = ARGV[1], tonumber(ARGV[2])
local tag = tag_of(state)
local some = redis.call('EXISTS', erasing, tag .. ':named') > 0
local some_erasing = some and redis.call('EXISTS', erasing) == 1
local named
if some then
  local names = {'\0' .. '0'}
  for i = 4, #ARGV, 3 do names[#names + 1] = '\0' .. ARGV[i] end
  named = named_of(tag, names)
end
local outcome, unsettled = {}, false
for i = 3, #ARGV, 3 do
  local kind, group, packed = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if state_of(state, group) ~= 'a' then
    outcome[#outcome + 1] = string.rep('N', #packed / 16)
  elseif kind == '-' then
    unsettled = remove_ids(tag, group, packed, some_erasing, named, joined_at, outcome)
      or unsettled
  else
    unsettled = add_ids(
      tag, group, packed, joined_at, limit, kind == '!', some_erasing, named, outcome
    ) or unsettled
  end
end
if unsettled then outcome[#outcome + 1] = '!' end
return table.concat(outcome)
