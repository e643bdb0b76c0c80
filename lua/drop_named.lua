#!lua flags=allow-oom
--[[
Take names out of what rule trees name, as this partition knows it, that the rules in force here
name no more.

KEYS[1]    rules    STRING  version of the rules in force here
KEYS[2]    named    SET     what rule trees name
KEYS[3]    none     never exists
ARGV[1]    version  integer  of the rules that do not name them
ARGV[2..]  name     names to take out
Computed   none
Returns    how many were taken out; 0 where other rules are in force
Errors     none
Cost       O(names); safe to send twice
]]
local rules, named = KEYS[1], KEYS[2]
local version = ARGV[1]
if redis.call('GET', rules) ~= version then return 0 end
redis.call('SREM', named, '\0!')
local dropped = 0
for i = 2, #ARGV, 2000 do
  dropped = dropped + redis.call('SREM', named, unpack(ARGV, i, math.min(i + 1999, #ARGV)))
end
return dropped
