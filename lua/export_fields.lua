#!lua flags=no-writes
--[[
One bounded step of a walk through what is kept of one profile.

KEYS[1]    erasing   SET   profiles being erased
KEYS[2]    none      never exists
ARGV[1]    id        mixed id
ARGV[2]    kind      m, attributes or identities
ARGV[3]    cursor    0 to begin
Computed   <tag>:<kind>:<id>, <tag>:dynamic
Returns    {cursor, field, value, ...}: cursor 0 at the end; what is there from beginning to end
           comes at least once; of memberships those of static groups
Errors     ERASING  the profile is being erased
Cost       O(500), about 1 us a field
]]
--- @include "include/tag_of"
--- @include "include/static_fields"
local erasing, id = KEYS[1], ARGV[1]
if redis.call('SISMEMBER', erasing, id) == 1 then
  return redis.error_reply('ERASING the profile is being erased')
end
local tag, kind = tag_of(erasing), ARGV[2]
local step = redis.call('HSCAN', tag .. ':' .. kind .. ':' .. id, ARGV[3], 'COUNT', 500)
local fields = kind == 'm' and static_fields(tag, step[2]) or step[2]
local reply = {step[1]}
for i = 1, #fields do
  reply[i + 1] = fields[i]
end
return reply
