#!lua flags=no-writes
--[[
A page of the active groups that a profile is in, in the order of their numbers (of creation). Of a
profile in very many groups only their numbers: what else there is to say takes further scripts.

KEYS[1]    state     HASH  state of groups in this partition
KEYS[2]    count     HASH  members of groups in this partition
KEYS[3]    erasing   SET   profiles being erased
KEYS[4]    none      never exists
ARGV[1]    id        mixed id
ARGV[2]    backward  0 or 1: ascending, or descending
ARGV[3]    bound     number that the page begins at, inclusive; '' from the very end
ARGV[4]    skip      integer  rows from there on that are passed over
ARGV[5]    limit     integer  rows at most
ARGV[6]    inactive  0 or 1: inactive groups, too
ARGV[7]    most      integer  of a profile in more groups than these the numbers alone; 1,000
Computed   <tag>:m:<id>
Returns    {total, more, other, {group, ...}, {joined_at, ...}, {members, ...}}: total of the groups
           asked for; more is 1 where a row follows the last one, other where one lies on the other
           side of the first; members is the group's count in this partition, nil for none. Or a
           string: the numbers of all groups in any order, with spaces between them
Errors     ERASING   the profile is being erased
Cost       O(groups of the profile x log), about 0.7 us each and 0.6 us a row; 0.2 us each where it
           is the numbers alone
]]
--- @include "include/tag_of"
local state, count, erasing = KEYS[1], KEYS[2], KEYS[3]
local id, backward = ARGV[1], ARGV[2] == '1'
local bound, skip, limit = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local also_inactive, most = ARGV[6] == '1', tonumber(ARGV[7])
local call, sub = redis.call, string.sub
if call('SISMEMBER', erasing, id) == 1 then
  return redis.error_reply('ERASING the profile is being erased')
end
local memberships = tag_of(state) .. ':m:' .. id
local groups = call('HKEYS', memberships)
if #groups > most then return table.concat(groups, ' ') end
if #groups == 0 then return {0, 0, 0, {}, {}, {}} end
local states = call('HMGET', state, unpack(groups))
local listed = {}
for i = 1, #groups do
  local letter = states[i] and sub(states[i], -1) or 'a'
  if (letter == 'a' or (also_inactive and letter == 'i')) and groups[i] ~= 'd' then
    listed[#listed + 1] = tonumber(groups[i])
  end
end
table.sort(listed)
local first, last, step = 1, #listed, 1
if backward then first, last, step = last, first, -1 end
local more, other, page = 0, 0, {}
for i = first, last, step do
  local group = listed[i]
  local inside = not bound or (backward and group <= bound) or (not backward and group >= bound)
  if not inside then
    other = 1
  elseif skip > 0 then
    skip = skip - 1
    other = 1
  elseif #page == limit then
    more = 1
    break
  else
    page[#page + 1] = string.format('%d', group)
  end
end
if #page == 0 then return {#listed, more, other, {}, {}, {}} end
return {
  #listed, more, other, page,
  call('HMGET', memberships, unpack(page)), call('HMGET', count, unpack(page)),
}
