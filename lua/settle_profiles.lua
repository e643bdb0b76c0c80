#!lua flags=allow-oom
--[[
Tell profiles what they inherit from instances that they are listed with, unless a later version has
told them something already. On a full store, too: it replaces what was told before.

KEYS[1]    rules     STRING  version of the rules in force here
KEYS[2]    none      never exists
ARGV[1..]  repeated: mixed id; instance; its version; what the profile is told, as it is kept
Computed   <tag>:instances:<id>
Returns    {place, version, ...}: of the ARGV (counted from 0, by four) that a later version told
           something already, and that version
Errors     none
Cost       O(ARGV), about 3 us for each four; safe to send twice
]]
--- @include "include/tag_of"
local call, match = redis.call, string.match
local listed = tag_of(KEYS[1]) .. ':instances:'
local later = {}
for i = 1, #ARGV, 4 do
  local key, iid = listed .. ARGV[i], ARGV[i + 1]
  local held = call('HGET', key, iid)
  if held and held ~= ARGV[i + 3] then
    local told = match(held, '^%d+ (%d+)')
    if tonumber(told) > tonumber(ARGV[i + 2]) then
      later[#later + 1] = (i - 1) / 4
      later[#later + 1] = told
    else
      call('HSET', key, iid, ARGV[i + 3])
    end
  end
end
return later
