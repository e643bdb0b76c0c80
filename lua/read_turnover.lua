#!lua flags=no-writes
--[[
How many members dynamic groups gained and lost in this partition, in some hours together.

KEYS[1..]  turnover  HASH  of each hour: +<number>, -<number> -> members; the last key never exists
ARGV[1..]  number    integer  numbers of groups
Computed   none
Returns    {gained, lost, ...}, of each group in turn
Errors     none
Cost       O(hours x groups), about 0.35 us each
]]
local call = redis.call
local fields, sums = {}, {}
for i = 1, #ARGV do
  fields[2 * i - 1], fields[2 * i] = '+' .. ARGV[i], '-' .. ARGV[i]
  sums[2 * i - 1], sums[2 * i] = 0, 0
end
if #fields == 0 then return sums end
for hour = 1, #KEYS - 1 do
  if call('EXISTS', KEYS[hour]) == 1 then
    local held = call('HMGET', KEYS[hour], unpack(fields))
    for i = 1, #fields do
      if held[i] then sums[i] = sums[i] + tonumber(held[i]) end
    end
  end
end
return sums
