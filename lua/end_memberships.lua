#!lua flags=allow-oom
--[[
Have memberships of dynamic groups end, as `settle_memberships` does, where none begins and nothing
is to wake anybody: what only takes away is done on a full store, too. (What somebody else took away
since it was read begins again.)

KEYS[1]    rules     STRING  version of the rules in force here
KEYS[2]    state     HASH    state of groups in this partition
KEYS[3]    erasing   SET     profiles being erased
KEYS[4]    unsettled ZSET    profiles of which something changed that rules have yet to follow
KEYS[5]    due       ZSET    mixed id and group -> when time alone may turn the group's rule
KEYS[6]    none      never exists
ARGV[1]    version   integer  of the rules that the caller goes by
ARGV[2]    now       integer  microseconds since 1970
ARGV[3]    hour      integer  hours since 1970
ARGV[4]    ttl       integer  seconds that the turnover of the hour is kept
ARGV[5]    groups    integer  how many numbers of groups follow; -1: all static ones
ARGV[6]    definitions  integer  how many numbers of definitions follow
ARGV[7..]  the groups and the definitions; then rows, as `change_memberships` takes them, of
           which at most 30 change
Computed   <tag>:profile:<id>, <tag>:instances:<id>, <tag>:m:<id>, <tag>:changed:<id>,
           <tag>:g:<group>:<depth>:<prefix>, <tag>:count, <tag>:shape, <tag>:dynamic,
           <tag>:turnover:<hour>
Returns    string, a letter per profile: + it is done, S the facts have changed
Errors     STALE  the version of the rules in force here, which is another one
Cost       O(ARGV), about 8 us a profile and 6 us a membership that changes; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/rules_differ"
--- @include "include/change_memberships"
local rules = KEYS[1]
local version, now, hour, ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local groups, definitions = tonumber(ARGV[5]), tonumber(ARGV[6])
local differ = rules_differ(rules, version)
if differ then return differ end
return change_memberships(tag_of(rules), now, hour, ttl, groups, definitions, 7)
