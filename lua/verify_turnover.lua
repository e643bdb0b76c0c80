#!lua flags=no-writes
--[[
What dynamic groups gained and lost in some hours, and when that goes by itself.

KEYS[1]    dynamic   SET   numbers of dynamic groups that have had members here
KEYS[2]    none      never exists
ARGV[1]    cursor    HSCAN cursor in the first hour, 0 to begin
ARGV[2]    budget    integer  after about as many counts the step ends
ARGV[3..]  hour      hours since 1970
Computed   <tag>:turnover:<hour>
Returns    {done, cursor, hour, milliseconds, counts, ...}: done hours are finished, cursor is where
           the next one goes on; milliseconds as PTTL says, counts and their values alternating
Errors     none
Cost       O(budget), about 1 us each
]]
--- @include "include/tag_of"
local cursor, budget = ARGV[1], tonumber(ARGV[2])
local call = redis.call
local tag = tag_of(KEYS[1])
local reply = {0, '0'}
for i = 3, #ARGV do
  if budget <= 0 then break end
  local key = tag .. ':turnover:' .. ARGV[i]
  local step = call('HSCAN', key, cursor, 'COUNT', budget)
  cursor = tostring(step[1])
  local size = #reply
  reply[size + 1] = ARGV[i]
  reply[size + 2] = call('PTTL', key)
  reply[size + 3] = step[2]
  budget = budget - 1 - #step[2] / 2
  if cursor ~= '0' then
    reply[2] = cursor
    break
  end
  reply[1] = reply[1] + 1
end
return reply
