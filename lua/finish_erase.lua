#!lua flags=allow-oom
--[[
Forget identities that were released elsewhere; when none is left, and the profile is listed in no
instance any more, the record goes, the profile leaves group 0, and the mark is dropped. A fence
keeps attempts to take one of them that began before from being confirmed afterwards: they would,
but for it, find what was released.

KEYS[1]    erasing    SET   profiles being erased
KEYS[2]    profile    HASH  record of the profile
KEYS[3]    identities HASH  what resolves to the profile
KEYS[4]    fence      STRING  the latest attempt that was given up
KEYS[5]    none       never exists
ARGV[1]    id         mixed id
ARGV[2]    now        integer  microseconds since 1970
ARGV[3]    ttl        integer  seconds that the fence stands: longer than any attempt lives
ARGV[4..]  identity and since, alternating: released identities, as the profile listed them
Computed   <tag>:m:<id>, <tag>:attributes:<id>, <tag>:instances:<id>, <tag>:requests:<id>,
           <tag>:dirty, <tag>:changed:<id>, <tag>:unsettled, <tag>:g:0:<depth>:<prefix>
Returns    1 where the profile is erased, 0 where identities, memberships, attributes or instances
           remain
Errors     none
Cost       O(identities); safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/delete_members"
local erasing, profile, identities, fence = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, now, ttl = ARGV[1], ARGV[2], ARGV[3]
local call = redis.call
if call('SISMEMBER', erasing, id) == 0 then return 1 end
for i = 4, #ARGV, 2 do
  if call('HGET', identities, ARGV[i]) == ARGV[i + 1] then call('HDEL', identities, ARGV[i]) end
end
local tag = tag_of(erasing)
local left = call('EXISTS', identities, tag .. ':m:' .. id, tag .. ':attributes:' .. id,
  tag .. ':instances:' .. id)
if left > 0 then return 0 end
if #ARGV > 3 then
  local held = call('GET', fence)
  if held and tonumber(held) > tonumber(now) then now = held end
  call('SET', fence, now, 'EX', ttl)
end
if call('EXISTS', profile) == 1 then
  call('DEL', profile)
  delete_members(tag, '0', {id})
end
call('DEL', tag .. ':requests:' .. id, tag .. ':changed:' .. id)
call('ZREM', tag .. ':dirty', id)
call('ZREM', tag .. ':unsettled', id)
call('SREM', erasing, id)
return 1
