#!lua flags=allow-oom
--[[
One bounded step of erasing a marked profile: up to `limit` memberships, those of dynamic groups,
too, then its attributes and the batches that it is remembered for. After that it says in how many
instances the profile is listed, which has to end, and names the identities that have to be released
before the erasing can finish.

KEYS[1]    erasing    SET   profiles being erased
KEYS[2]    attributes HASH  attributes of the profile
KEYS[3]    instances  HASH  instances that it contributes to
KEYS[4]    none       never exists
ARGV[1]    id         mixed id
ARGV[2]    limit      integer  memberships and identities at most
ARGV[3]    hour       integer  hours since 1970
ARGV[4]    ttl        integer  seconds that the turnover of the hour is kept
Computed   <tag>:m:<id>, <tag>:g:<group>:<depth>:<prefix>, <tag>:identities:<id>,
           <tag>:profile:<id>, <tag>:requests:<id>, <tag>:dynamic, <tag>:turnover:<hour>
Returns    {marked, memberships, attributes, instances, left, identity, since, ...}: marked is 0
           where another finished; memberships and attributes removed by this step; instances that
           list it yet; left is 1 while memberships remain, and then no identities are named
Errors     none
Cost       O(limit), about 15 us a membership; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/drop_memberships"
local erasing, attributes, instances = KEYS[1], KEYS[2], KEYS[3]
local id, limit, hour, ttl = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local call = redis.call
if call('SISMEMBER', erasing, id) == 0 then return {0, 0, 0, 0, 0} end
local tag = tag_of(erasing)
local memberships = tag .. ':m:' .. id
local removed = 0
local groups = call('HKEYS', memberships)
local derived = {}
if call('HEXISTS', memberships, 'd') == 1 then
  for i = 1, #groups, 2000 do
    local last = math.min(i + 1999, #groups)
    local found = call('SMISMEMBER', tag .. ':dynamic', unpack(groups, i, last))
    for j = 1, #found do derived[i + j - 1] = found[j] == 1 end
  end
end
for i = 1, #groups do
  if removed == limit then return {1, removed, 0, 0, 1} end
  if groups[i] ~= 'd' then
    -- Nothing follows from it: of an erased profile there is nothing to say.
    drop_memberships(tag, groups[i], {id}, derived[i], nil, nil)
    if derived[i] then
      local turnover = tag .. ':turnover:' .. hour
      call('HINCRBY', turnover, '-' .. groups[i], 1)
      call('EXPIRE', turnover, ttl)
    end
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
