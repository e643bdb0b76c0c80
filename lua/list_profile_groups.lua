#!lua flags=no-writes
--[[
A page of the active groups that a profile is in, in the order of their numbers (of creation).

KEYS[1]    state     HASH  state of groups in this partition
KEYS[2]    count     HASH  members of groups in this partition
KEYS[3]    erasing   SET   profiles being erased
KEYS[4]    none      never exists
ARGV[1]    id        mixed id
ARGV[2]    backward  0 or 1: ascending, or descending
ARGV[3]    bound     number that the page begins at, inclusive; '' from the very end
ARGV[4]    limit     integer  rows at most
Computed   <tag>:m:<id>
Returns    {total, more, other, group, joined_at, members, group, ...}: total of active groups;
           more is 1 where a row follows the last one, other where one lies on the other side of
           the bound; members is the group's count in this partition
Errors     ERASING   the profile is being erased
Cost       O(groups of the profile x log), about 1 us each
]]
--- @include "include/tag_of"
local state, count, erasing = KEYS[1], KEYS[2], KEYS[3]
local id, backward, limit = ARGV[1], ARGV[2] == '1', tonumber(ARGV[4])
local bound = tonumber(ARGV[3])
local call = redis.call
if call('SISMEMBER', erasing, id) == 1 then
  return redis.error_reply('ERASING the profile is being erased')
end
local held = call('HGETALL', tag_of(state) .. ':m:' .. id)
local joined_at, groups = {}, {}
for i = 1, #held, 2 do
  if held[i] ~= 'd' then
    joined_at[held[i]] = held[i + 1]
    groups[#groups + 1] = held[i]
  end
end
local active = {}
for first = 1, #groups, 2000 do
  local last = math.min(#groups, first + 1999)
  local states = call('HMGET', state, unpack(groups, first, last))
  for i = first, last do
    local value = states[i - first + 1]
    if not value or string.sub(value, -1) == 'a' then active[#active + 1] = tonumber(groups[i]) end
  end
end
if backward then
  table.sort(active, function(a, b) return a > b end)
else
  table.sort(active)
end
local rows, page = {#active, 0, 0}, {}
for i = 1, #active do
  local group = active[i]
  local inside = not bound or (backward and group <= bound) or (not backward and group >= bound)
  if not inside then
    rows[3] = 1
  elseif #page == limit then
    rows[2] = 1
    break
  else
    page[#page + 1] = string.format('%d', group)
  end
end
if #page == 0 then return rows end
local members = call('HMGET', count, unpack(page))
for i = 1, #page do
  rows[3 * i + 1] = page[i]
  rows[3 * i + 2] = joined_at[page[i]]
  rows[3 * i + 3] = members[i] or '0'
end
return rows
