#!lua
--[[
Set a counter that is no number.

KEYS[1]    counter   STRING  numbers or version of a directory
KEYS[2]    none      never exists
ARGV[1]    value     integer
Computed   none
Returns    1 where it was set, 0 where it is a number
Errors     none
Cost       O(1); safe to send twice
]]
local held = redis.call('GET', KEYS[1])
if held and (held == '0' or string.match(held, '^[1-9]%d*$')) then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
return 1
