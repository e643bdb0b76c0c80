#!lua flags=allow-oom
--[[
Tell profiles what they inherit from instances that they are listed with, unless a later version has
told them something already. Where that changes what rules name, it is noted that memberships of
dynamic groups have to follow. On a full store, too: it replaces what was told before.

KEYS[1]    rules     STRING  version of the rules in force here
KEYS[2]    none      never exists
ARGV[1]    now       integer  microseconds since 1970
ARGV[2..]  repeated: mixed id; instance; its version; what the profile is told, as it is kept
Computed   <tag>:instances:<id>, <tag>:named, <tag>:changed:<id>, <tag>:unsettled
Returns    {{place, version, ...}, {place, ...}}: of the rows (counted from 0) that a later version
           told something already, and that version; of those from which something has to follow
Errors     none
Cost       O(ARGV), about 3 us a row, and 4 us more where something has to follow; safe to send
           twice
]]
--- @include "include/tag_of"
--- @include "include/mark_unsettled"
--- @include "include/named_of"
--- @include "include/inherits_anew"
local now = ARGV[1]
local call, match = redis.call, string.match
local tag = tag_of(KEYS[1])
local listed = tag .. ':instances:'
local any_named = call('EXISTS', tag .. ':named') == 1
local is_named = {}
local later, unsettled = {}, {}
for i = 2, #ARGV, 4 do
  local key, iid, told = listed .. ARGV[i], ARGV[i + 1], ARGV[i + 3]
  local held = call('HGET', key, iid)
  if held and held ~= told then
    local number, version = match(held, '^(%d+) (%d+)')
    if tonumber(version) > tonumber(ARGV[i + 2]) then
      later[#later + 1] = (i - 2) / 4
      later[#later + 1] = version
    else
      call('HSET', key, iid, told)
      local name = '\0:' .. number
      if any_named and is_named[name] == nil then
        is_named[name] = named_of(tag, {name}) ~= nil
      end
      if is_named[name] and inherits_anew(key, number, held, told) then
        mark_unsettled(tag, {ARGV[i]}, {name}, now)
        unsettled[#unsettled + 1] = (i - 2) / 4
      end
    end
  end
end
return {later, unsettled}
