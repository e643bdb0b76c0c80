#!lua flags=allow-oom
--[[
Remove profiles from a static group, both directions at once. A profile left without any fact
leaves group 0 in the same step.

KEYS[1]    state     HASH  state of groups in this partition
KEYS[2]    count     HASH  members of groups in this partition
KEYS[3]    shape     HASH  segments of groups in this partition
KEYS[4]    erasing   SET   profiles being erased
KEYS[5]    none      never exists
ARGV[1]    group     integer  the group's number
ARGV[2]    now       integer  microseconds since 1970
ARGV[3]    ids       packed mixed ids, 16 bytes each, none twice
Computed   <tag>:m:<id>, <tag>:g:<group>:<depth>:<prefix>, the same of group 0, <tag>:profile:<id>,
           <tag>:named, <tag>:changed:<id>, <tag>:unsettled
Returns    string, a letter per id: - removed, . was no member, E being erased; after them ! where
           rules have yet to follow
Errors     INACTIVE  the group is inactive
           DELETED   the group is deleted
Cost       O(ids), about 10 us each; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/require_active"
--- @include "include/named_of"
--- @include "include/remove_ids"
local state, erasing = KEYS[1], KEYS[4]
local group, now, packed = ARGV[1], ARGV[2], ARGV[3]
local refused = require_active(state, group)
if refused then return refused end
local tag = tag_of(state)
local some = redis.call('EXISTS', erasing, tag .. ':named') > 0
local some_erasing = some and redis.call('EXISTS', erasing) == 1
local named = some and named_of(tag, {'\0' .. group, '\0' .. '0'}) or nil
local outcome = {}
if remove_ids(tag, group, packed, some_erasing, named, now, outcome) then
  outcome[#outcome + 1] = '!'
end
return table.concat(outcome)
