#!lua flags=no-writes
--[[
Which of some profiles are members of a group, with what a member list shows of them.

KEYS[1]    state     HASH  state of groups in this partition
KEYS[2]    erasing   SET   profiles being erased
KEYS[3]    none      never exists
ARGV[1]    group     integer  the group's number
ARGV[2]    inactive  0 or 1: of an inactive group, too
ARGV[3]    ids       packed mixed ids, 16 bytes each; at most 100
Computed   <tag>:m:<id>, <tag>:profile:<id>
Returns    {joined_at, nickname, custom_id, joined_at, ...}, in the order given; joined_at is nil
           where the profile is no member
Errors     INACTIVE  the group is inactive
           DELETED   the group is deleted
           ERASING   one of the profiles is being erased
Cost       O(ids), about 3 us each
]]
--- @include "include/tag_of"
--- @include "include/require_active"
local state, erasing = KEYS[1], KEYS[2]
local group, also_inactive, packed = ARGV[1], ARGV[2] == '1', ARGV[3]
local call = redis.call
local refused = require_active(state, group, also_inactive)
if refused then return refused end
local tag = tag_of(state)
local some_erasing = call('EXISTS', erasing) == 1
local rows, size = {}, 0
for i = 1, #packed, 16 do
  local id = string.sub(packed, i, i + 15)
  if some_erasing and call('SISMEMBER', erasing, id) == 1 then
    return redis.error_reply('ERASING the profile is being erased')
  end
  local profile = call('HMGET', tag .. ':profile:' .. id, 'nickname', 'custom_id')
  rows[size + 1] = call('HGET', tag .. ':m:' .. id, group)
  rows[size + 2] = profile[1]
  rows[size + 3] = profile[2]
  size = size + 3
end
return rows
