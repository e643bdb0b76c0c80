#!lua flags=allow-oom
--[[
Raise the seq of a profile above one that its contributions had already, if its facts are still as
read: a failover, or a clock that ran behind when a profile that was erased came back, put
it below. On a full store, too: a number takes the place of another one.

KEYS[1]    profile   HASH  record of the profile
KEYS[2]    dirty     ZSET  profiles whose derived data is behind
KEYS[3]    none      never exists
ARGV[1]    id        mixed id
ARGV[2]    seq       the seq that was read
ARGV[3]    above     integer  the seq that is known elsewhere
ARGV[4]    now       integer  microseconds since 1970
Computed   <tag>:profile:<id>, <tag>:dirty
Returns    1 where it was raised, 0 where the facts have changed, or there is no record
Errors     none
Cost       O(1); safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/seq_of"
--- @include "include/raised"
--- @include "include/mark_dirty"
local profile = KEYS[1]
local id, seq, above, now = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local tag = tag_of(profile)
if seq == '' or seq_of(tag, id) ~= seq then return 0 end
redis.call('HSET', profile, 'seq', raised(above, now))
mark_dirty(tag, id, now)
return 1
