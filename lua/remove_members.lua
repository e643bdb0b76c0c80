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
ARGV[2]    ids       packed mixed ids, 16 bytes each, none twice
Computed   <tag>:m:<id>, <tag>:g:<group>:<depth>:<prefix>, the same of group 0, <tag>:profile:<id>
Returns    string, a letter per id: - removed, . was no member, E being erased
Errors     INACTIVE  the group is inactive
           DELETED   the group is deleted
Cost       O(ids), about 10 us each; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/require_active"
--- @include "include/remove_ids"
local state, erasing = KEYS[1], KEYS[4]
local group, packed = ARGV[1], ARGV[2]
local refused = require_active(state, group)
if refused then return refused end
local some_erasing = redis.call('EXISTS', erasing) == 1
local outcome = {}
remove_ids(tag_of(state), group, packed, some_erasing, outcome)
return table.concat(outcome)
