#!lua flags=allow-oom
--[[
Add to what rule trees name, as this partition knows it, a part of the names of rules that are too
many for one script: all parts first, then `install_rules`. A mark in the set says that nobody took
anything out of it since the first part.

KEYS[1]    rules    STRING  version of the rules in force here
KEYS[2]    named    SET     what rule trees name
KEYS[3]    none     never exists
ARGV[1]    version  integer  of the rules that are being told
ARGV[2]    first    0 or 1: this is the first part
ARGV[3..]  name     names of this part
Computed   none
Returns    the version in force here; -1 where it is lower, but what was added before may be gone
Errors     none
Cost       O(names); safe to send twice
]]
local rules, named = KEYS[1], KEYS[2]
local version, first = ARGV[1], ARGV[2] == '1'
local call = redis.call
local held = call('GET', rules)
if held and tonumber(held) >= tonumber(version) then return held end
if first then
  call('SADD', named, '\0!')
elseif call('SISMEMBER', named, '\0!') == 0 then
  return '-1'
end
for i = 3, #ARGV, 2000 do
  call('SADD', named, unpack(ARGV, i, math.min(i + 1999, #ARGV)))
end
return held or '0'
