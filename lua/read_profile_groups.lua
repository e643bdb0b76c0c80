#!lua flags=no-writes
--[[
What there is to say of some groups of a profile, where list_profile_groups gave the numbers alone.

KEYS[1]    state     HASH  state of groups in this partition
KEYS[2]    count     HASH  members of groups in this partition
KEYS[3]    erasing   SET   profiles being erased
KEYS[4]    none      never exists
ARGV[1]    id        mixed id
ARGV[2]    inactive  0 or 1: inactive groups, too
ARGV[3]    rows      0 or 1: say since when the profile is a member, and how many members there are
ARGV[4..]  group     integer  numbers of groups; at most 1,000
Computed   <tag>:m:<id>
Returns    {{group, ...}, {joined_at, ...}, {members, ...}}: the groups that are not to be listed,
           for their state; then, of all groups, where asked for: joined_at is nil where the profile
           is no member, members is the group's count in this partition, nil for none
Errors     ERASING   the profile is being erased
Cost       O(groups), about 0.3 us each, 0.9 us with rows
]]
--- @include "include/tag_of"
local state, count, erasing = KEYS[1], KEYS[2], KEYS[3]
local id, also_inactive, rows = ARGV[1], ARGV[2] == '1', ARGV[3] == '1'
local call, sub = redis.call, string.sub
if call('SISMEMBER', erasing, id) == 1 then
  return redis.error_reply('ERASING the profile is being erased')
end
local states = call('HMGET', state, unpack(ARGV, 4))
local unlisted = {}
for i = 1, #states do
  local letter = states[i] and sub(states[i], -1) or 'a'
  if letter ~= 'a' and not (also_inactive and letter == 'i') then
    unlisted[#unlisted + 1] = ARGV[i + 3]
  end
end
if not rows then return {unlisted, {}, {}} end
local memberships = tag_of(state) .. ':m:' .. id
return {
  unlisted, call('HMGET', memberships, unpack(ARGV, 4)), call('HMGET', count, unpack(ARGV, 4)),
}
