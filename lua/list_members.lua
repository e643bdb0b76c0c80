#!lua flags=no-writes
--[[
A page of the members of a group in this partition, in the order of their mixed ids, from one bound
on, with what a member list shows of them.

KEYS[1]    state     HASH  state of groups in this partition
KEYS[2]    shape     HASH  segments of groups in this partition
KEYS[3]    none      never exists
ARGV[1]    group     integer  the group's number
ARGV[2]    backward  0 or 1: ascending, or descending
ARGV[3]    bound     '' or an id after ( or [, where the page begins, as ZRANGE BYLEX writes it
ARGV[4]    limit     integer  rows at most; 125 stay under 2 ms
ARGV[5]    sides     0 or 1: look at the other side of the bound too
ARGV[6]    inactive  0 or 1: of an inactive group, too
Computed   <tag>:g:<group>:<depth>:<prefix>, <tag>:m:<id>, <tag>:profile:<id>
Returns    {more, other, id, joined_at, nickname, custom_id, id, ...}: more is 1 where a row follows
           the last one, other is 1 where a row lies on the other side of the bound; each is 0
           where none does, or else the bound from which on that has still to be looked for
Errors     INACTIVE  the group is inactive
           DELETED   the group is deleted
Cost       O(limit), about 3 us a row
]]
--- @include "include/tag_of"
--- @include "include/require_active"
--- @include "include/walk_members"
local state = KEYS[1]
local group, backward, bound, limit = ARGV[1], ARGV[2] == '1', ARGV[3], tonumber(ARGV[4])
local refused = require_active(state, group, ARGV[6] == '1')
if refused then return refused end
local tag = tag_of(state)
local ids, left = walk_members(tag, group, backward, bound, limit + 1)
local other = 0
if ARGV[5] == '1' and bound ~= '' then
  local side = (string.sub(bound, 1, 1) == '(' and '[' or '(') .. string.sub(bound, 2)
  local beyond, left_beyond = walk_members(tag, group, not backward, side, 1)
  other = left_beyond or #beyond
end
local rows = {left or (#ids > limit and 1 or 0), other}
local size = 2
for i = 1, math.min(#ids, limit) do
  local profile = redis.call('HMGET', tag .. ':profile:' .. ids[i], 'nickname', 'custom_id')
  rows[size + 1] = ids[i]
  rows[size + 2] = redis.call('HGET', tag .. ':m:' .. ids[i], group)
  rows[size + 3] = profile[1]
  rows[size + 4] = profile[2]
  size = size + 4
end
return rows
