#!lua flags=no-writes
--[[
What is kept of a profile: its record, its attributes, what it is shown to inherit, and what
resolves to it.

KEYS[1]    profile    HASH  record of the profile
KEYS[2]    attributes HASH  its attributes
KEYS[3]    identities HASH  what resolves to the profile
KEYS[4]    erasing   SET   profiles being erased
KEYS[5]    instances HASH  instances that it contributes to
KEYS[6]    rules     STRING  version of the rules
KEYS[7]    none      never exists
ARGV[1]    id        mixed id
Computed   <tag>:m:<id>, <tag>:profile:<id>, <tag>:dirty
Returns    {record, attributes, instances, version, dirty, identities}: fields and values,
           alternating; the version of the rules; 1 where what follows from the attributes is
           behind; identities without the values. Lists are empty where only memberships are known
Errors     ERASING   the profile is being erased
           NOTFOUND  nothing is known of it
Cost       O(attributes + instances + identities), about 1 us each
]]
--- @include "include/tag_of"
--- @include "include/has_fact"
--- @include "include/kept_of"
local profile, attributes, identities, erasing = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local instances, rules = KEYS[5], KEYS[6]
local id = ARGV[1]
if redis.call('SISMEMBER', erasing, id) == 1 then
  return redis.error_reply('ERASING the profile is being erased')
end
if not has_fact(tag_of(profile), id) then return redis.error_reply('NOTFOUND Not found.') end
local kept = kept_of(profile, attributes, instances, rules, id, false)
kept[6] = redis.call('HKEYS', identities)
return kept
