#!lua
--[[
Raise the counter of group numbers to one that is in use; leave the intent to sweep it where it has
no document.

KEYS[1]    numbers   STRING  the last group number given out
KEYS[2]    deleting  ZSET    numbers being swept -> version of the deletion
KEYS[3]    none      never exists
ARGV[1]    number    integer
ARGV[2]    version   integer  the deletion's version, or '' where there is nothing to sweep
Computed   <tag>:group:<number>
Returns    {raised, deleting}: 1 or 0 each
Errors     none
Cost       O(1); safe to send twice
]]
--- @include "include/tag_of"
local numbers, deleting = KEYS[1], KEYS[2]
local number, version = ARGV[1], ARGV[2]
local call = redis.call
local raised, swept = 0, 0
local last = call('GET', numbers)
if not last or not string.match(last, '^%d+$') or tonumber(last) < tonumber(number) then
  call('SET', numbers, number)
  raised = 1
end
if version ~= '' and call('EXISTS', tag_of(numbers) .. ':group:' .. number) == 0 then
  call('ZADD', deleting, version, number)
  swept = 1
end
return {raised, swept}
