#!lua
--[[
Take in what was kept of a profile in the wrong partition. What is known here already stays.

KEYS[1]    erasing   SET   profiles being erased
KEYS[2]    none      never exists
ARGV[1]    id        mixed id
ARGV[2]    kind      m, profile, attributes or identities
ARGV[3..]  field and value, alternating; at most 200 of each
Computed   <tag>:<kind>:<id>
Returns    how many were taken in
Errors     ERASING  the profile is being erased
Cost       O(fields); safe to send twice
]]
--- @include "include/tag_of"
local erasing, id = KEYS[1], ARGV[1]
if redis.call('SISMEMBER', erasing, id) == 1 then
  return redis.error_reply('ERASING the profile is being erased')
end
local key = tag_of(erasing) .. ':' .. ARGV[2] .. ':' .. id
local taken = 0
for i = 3, #ARGV, 2 do
  taken = taken + redis.call('HSETNX', key, ARGV[i], ARGV[i + 1])
end
return taken
