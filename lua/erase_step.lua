#!lua flags=allow-oom
--[[
One bounded step of erasing a marked profile: up to `limit` memberships, then its attributes and the
batches that it is remembered for. After that it says in how many instances the profile is listed,
which has to end, and names the identities that have to be released before the erasing can finish.

KEYS[1]    erasing    SET   profiles being erased
KEYS[2]    attributes HASH  attributes of the profile
KEYS[3]    instances  HASH  instances that it contributes to
KEYS[4]    none       never exists
ARGV[1]    id         mixed id
ARGV[2]    limit      integer  memberships and identities at most
Computed   <tag>:m:<id>, <tag>:g:<group>:<depth>:<prefix>, <tag>:identities:<id>,
           <tag>:profile:<id>, <tag>:requests:<id>
Returns    {marked, memberships, attributes, instances, left, identity, since, ...}: marked is 0
           where another finished; memberships and attributes removed by this step; instances that
           list it yet; left is 1 while memberships remain, and then no identities are named
Errors     none
Cost       O(limit), about 15 us a membership; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/drop_memberships"
local erasing, attributes, instances = KEYS[1], KEYS[2], KEYS[3]
local id, limit = ARGV[1], tonumber(ARGV[2])
local call = redis.call
if call('SISMEMBER', erasing, id) == 0 then return {0, 0, 0, 0, 0} end
local tag = tag_of(erasing)
local memberships = tag .. ':m:' .. id
local removed = 0
local groups = call('HKEYS', memberships)
for i = 1, #groups do
  if removed == limit then return {1, removed, 0, 0, 1} end
  if groups[i] ~= 'd' then
    drop_memberships(tag, groups[i], {id})
    removed = removed + 1
  end
end
call('DEL', memberships)
local dropped = 0
for _, held in ipairs(call('HVALS', attributes)) do
  -- What has no value is remembered as deleted.
  if string.find(held, ' ', 1, true) then dropped = dropped + 1 end
end
call('DEL', attributes, tag .. ':requests:' .. id)
local step = {1, removed, dropped, call('HLEN', instances), 0}
local identities = call('HGETALL', tag .. ':identities:' .. id)
for i = 1, math.min(#identities, 2 * limit) do
  step[5 + i] = identities[i]
end
return step
