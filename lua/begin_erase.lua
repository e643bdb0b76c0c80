#!lua flags=allow-oom
--[[
Mark a profile as being erased, if there is anything to erase: from now on scripts skip it, and the
mark is the intent that the worker can finish. Its `seq` rises.

KEYS[1]    erasing    SET   profiles being erased
KEYS[2]    profile    HASH  record of the profile
KEYS[3]    none       never exists
ARGV[1]    id         mixed id
ARGV[2]    now        integer  microseconds since 1970
Computed   <tag>:m:<id>, <tag>:profile:<id>, <tag>:attributes:<id>, <tag>:identities:<id>
Returns    1 where the profile is marked, 0 where nothing is known of it
Errors     none
Cost       O(1); safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/has_fact"
--- @include "include/raised"
local erasing, profile = KEYS[1], KEYS[2]
local id, now = ARGV[1], ARGV[2]
local call = redis.call
local tag = tag_of(erasing)
if call('SISMEMBER', erasing, id) == 1 then return 1 end
-- Derived memberships alone are nothing that is known.
if not has_fact(tag, id)
  and call('EXISTS', tag .. ':attributes:' .. id, tag .. ':identities:' .. id) == 0 then
  return 0
end
call('SADD', erasing, id)
if call('EXISTS', profile) == 1 then
  call('HSET', profile, 'seq', raised(call('HGET', profile, 'seq'), now))
end
return 1
