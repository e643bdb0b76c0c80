#!lua
--[[
Make the segments of groups hold what profiles say of their memberships: a profile whose group does
not hold it is entered. A membership in a group that is gone is dropped.

KEYS[1]    state     HASH  state of groups in this partition
KEYS[2]    none      never exists
ARGV[1]    now       integer  microseconds since 1970, for a membership without a time
ARGV[2..]  id, group, exists, repeated: a mixed id, a field of its memberships, and whether the
           directory knows that group, 0 or 1; at most 50 of each
Computed   <tag>:m:<id>, <tag>:g:<group>:<depth>:<prefix>, <tag>:count, <tag>:shape
Returns    string, a letter per id: + entered, - dropped, t given a time, . nothing to do
Errors     none
Cost       O(ids), about 15 us each; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/in_segment"
--- @include "include/insert_members"
--- @include "include/delete_members"
local state = KEYS[1]
local now = ARGV[1]
local call = redis.call
local tag = tag_of(state)
local letters = {}
for i = 2, #ARGV, 3 do
  local id, group, exists = ARGV[i], ARGV[i + 1], ARGV[i + 2] == '1'
  local key = tag .. ':m:' .. id
  local joined_at = call('HGET', key, group)
  local letter = '.'
  if joined_at then
    local held = call('HGET', state, group) or 'a'
    if group == 'd' then
      letter = '.'
    elseif not string.match(group, '^[1-9]%d*$') then
      call('HDEL', key, group)
      letter = '-'
    elseif not exists or string.match(held, '[dg]$') then
      call('HDEL', key, group)
      if in_segment(tag, group, id) then delete_members(tag, group, {id}) end
      letter = '-'
    else
      if not string.match(joined_at, '^%d+$') then
        call('HSET', key, group, now)
        letter = 't'
      end
      if not in_segment(tag, group, id) then
        insert_members(tag, group, {id})
        letter = '+'
      end
    end
  end
  letters[#letters + 1] = letter
end
return table.concat(letters)
