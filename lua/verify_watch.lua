#!lua flags=no-writes
--[[
What a partition knows of the rules of its application.

KEYS[1]    rules     STRING  version of the rules in force here
KEYS[2]    watch     SET     names of attributes whose change makes a profile dirty
KEYS[3]    none      never exists
Computed   none
Returns    {version, name, ...}: the version nil where there is none
Errors     none
Cost       O(names)
]]
local rules, watch = KEYS[1], KEYS[2]
local found = {redis.call('GET', rules)}
local names = redis.call('SMEMBERS', watch)
for i = 1, #names do found[1 + i] = names[i] end
return found
