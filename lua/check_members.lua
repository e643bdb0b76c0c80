#!lua flags=no-writes
--[[
For each pair of a group and a profile: is the profile a member?

KEYS[1]    state     HASH  state of groups in this partition
KEYS[2]    erasing   SET   profiles being erased
KEYS[3]    none      never exists
ARGV[1]    ids       packed mixed ids, 16 bytes each, in any order
ARGV[2..]  group     integer  the number of each id's group; at most 1,000
Computed   <tag>:m:<id>
Returns    string, a letter per pair: 1 member, 0 not, n no such group (inactive or deleted),
           E the profile is being erased
Errors     none
Cost       O(pairs), about 1 us each
]]
--- @include "include/tag_of"
local state, erasing = KEYS[1], KEYS[2]
local packed = ARGV[1]
local call, sub = redis.call, string.sub
local memberships = tag_of(state) .. ':m:'
local some_erasing = call('EXISTS', erasing) == 1
-- PERF: mostly no group has a state, and none has to be asked for.
local states = call('EXISTS', state) == 1 and call('HMGET', state, unpack(ARGV, 2)) or {}
local outcome = {}
for i = 1, #ARGV - 1 do
  local id = sub(packed, i * 16 - 15, i * 16)
  local value = states[i]
  if value and sub(value, -1) ~= 'a' then
    outcome[i] = 'n'
  elseif some_erasing and call('SISMEMBER', erasing, id) == 1 then
    outcome[i] = 'E'
  else
    outcome[i] = call('HEXISTS', memberships .. id, ARGV[i + 1]) == 1 and '1' or '0'
  end
end
return table.concat(outcome)
