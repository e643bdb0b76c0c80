#!lua flags=no-writes
--[[
What the directory knows of some group numbers.

KEYS[1]    numbers   STRING  the last group number given out
KEYS[2]    intents   ZSET    numbers whose state is not yet installed everywhere
KEYS[3]    deleting  ZSET    numbers being swept
KEYS[4]    none      never exists
ARGV[1..]  number    integer; at most 200
Computed   <tag>:group:<number>
Returns    {counter, document, version, intent, deleting, ...}: the counter or nil, and four parts
           per number, each nil where there is none
Errors     none
Cost       O(numbers), about 2 us each
]]
--- @include "include/tag_of"
local numbers, intents, deleting = KEYS[1], KEYS[2], KEYS[3]
local groups = tag_of(numbers) .. ':group:'
local reply = {redis.call('GET', numbers)}
for i = 1, #ARGV do
  local held = redis.call('HMGET', groups .. ARGV[i], 'document', 'version')
  reply[4 * i - 2] = held[1]
  reply[4 * i - 1] = held[2]
  reply[4 * i] = redis.call('ZSCORE', intents, ARGV[i])
  reply[4 * i + 1] = redis.call('ZSCORE', deleting, ARGV[i])
end
return reply
