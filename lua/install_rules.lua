#!lua flags=allow-oom
--[[
Tell this partition the version of the rules, and which attributes they name, unless it knows that
version or a higher one. On a full store, too: it is what ends the effect of a deleted definition.

KEYS[1]    rules     STRING  version of the rules in force here
KEYS[2]    watch     SET     names of attributes whose change makes a profile dirty
KEYS[3]    none      never exists
ARGV[1]    version   integer
ARGV[2..]  name      every name that the rules watch
Computed   none
Returns    the version that is in force here now
Errors     none
Cost       O(names), about 5 us each; safe to send twice
]]
local rules, watch = KEYS[1], KEYS[2]
local version = ARGV[1]
local held = redis.call('GET', rules)
if held and tonumber(held) >= tonumber(version) then return held end
redis.call('DEL', watch)
for i = 2, #ARGV, 2000 do
  redis.call('SADD', watch, unpack(ARGV, i, math.min(i + 1999, #ARGV)))
end
redis.call('SET', rules, version)
return version
