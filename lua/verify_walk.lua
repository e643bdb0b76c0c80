#!lua flags=no-writes
--[[
One bounded step of a walk through a hash, a set or a sorted set.

KEYS[1]    walked    HASH, SET or ZSET
KEYS[2]    none      never exists
ARGV[1]    cursor    0 to begin
ARGV[2]    command   HSCAN, SSCAN or ZSCAN, as the key's type asks for
Computed   none
Returns    {cursor, part, ...}: fields and values, members, or members and scores; cursor 0 at the
           end
Errors     none
Cost       O(200)
]]
local key, cursor, command = KEYS[1], ARGV[1], ARGV[2]
local step
if command == 'HSCAN' then
  step = redis.call('HSCAN', key, cursor, 'COUNT', 200)
elseif command == 'SSCAN' then
  step = redis.call('SSCAN', key, cursor, 'COUNT', 200)
else
  step = redis.call('ZSCAN', key, cursor, 'COUNT', 200)
end
local reply = {step[1]}
for i = 1, #step[2] do
  reply[i + 1] = step[2][i]
end
return reply
