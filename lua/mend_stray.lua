#!lua flags=allow-oom
--[[
One bounded step of forgetting a profile in a partition where it does not belong.

KEYS[1]    erasing   SET   profiles being erased
KEYS[2]    none      never exists
ARGV[1]    id        mixed id
ARGV[2]    limit     integer  memberships at most
Computed   <tag>:m:<id>, <tag>:g:<group>:<depth>:<prefix>, <tag>:count, <tag>:shape,
           <tag>:profile:<id>, <tag>:attributes:<id>, <tag>:identities:<id>,
           <tag>:instances:<id>, <tag>:requests:<id>, <tag>:dirty
Returns    1 where another step has to follow, else 0
Errors     none
Cost       O(limit), about 15 us each; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/in_segment"
--- @include "include/delete_members"
local id, limit = ARGV[1], tonumber(ARGV[2])
local call = redis.call
local tag = tag_of(KEYS[1])
local memberships = tag .. ':m:' .. id
local groups = call('HKEYS', memberships)
for i = 1, math.min(#groups, limit) do
  if in_segment(tag, groups[i], id) then delete_members(tag, groups[i], {id}) end
  call('HDEL', memberships, groups[i])
end
if #groups > limit then return 1 end
if in_segment(tag, '0', id) then delete_members(tag, '0', {id}) end
for _, kind in ipairs({'profile', 'attributes', 'identities', 'instances', 'requests'}) do
  call('DEL', tag .. ':' .. kind .. ':' .. id)
end
call('ZREM', tag .. ':dirty', id)
return 0
