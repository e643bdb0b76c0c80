#!lua flags=no-writes
--[[
One membership, with what a member list shows of it.

KEYS[1]    state     HASH  state of groups in this partition
KEYS[2]    erasing   SET   profiles being erased
KEYS[3]    none      never exists
ARGV[1]    group     integer  the group's number
ARGV[2]    id        mixed id
Computed   <tag>:m:<id>, <tag>:profile:<id>
Returns    {joined_at, nickname, custom_id}; joined_at is nil where the profile is no member
Errors     INACTIVE  the group is inactive
           DELETED   the group is deleted
           ERASING   the profile is being erased
Cost       O(1)
]]
--- @include "include/tag_of"
--- @include "include/require_active"
local state, erasing = KEYS[1], KEYS[2]
local group, id = ARGV[1], ARGV[2]
local refused = require_active(state, group)
if refused then return refused end
if redis.call('SISMEMBER', erasing, id) == 1 then
  return redis.error_reply('ERASING the profile is being erased')
end
local tag = tag_of(state)
local profile = redis.call('HMGET', tag .. ':profile:' .. id, 'nickname', 'custom_id')
return {redis.call('HGET', tag .. ':m:' .. id, group), profile[1], profile[2]}
