#!lua flags=no-writes
--[[
Which of some groups stand in all the given indexes.

KEYS[1..]  index     ZSET  indexes of active groups, then as many of inactive ones where those are
                           wanted; the last key never exists
ARGV[1]    wanted    integer  how many indexes of active groups
ARGV[2..]  number    integer  numbers of groups; at most 1,000
Computed   none
Returns    {number, ...}: those that do
Errors     none
Cost       O(numbers x indexes), about 0.6 us each
]]
local wanted = tonumber(ARGV[1])
local found = {}
for first = 1, #KEYS - 1, wanted do
  local left = {unpack(ARGV, 2)}
  for i = first, first + wanted - 1 do
    if #left == 0 then break end
    local scores = redis.call('ZMSCORE', KEYS[i], unpack(left))
    local standing = {}
    for j = 1, #left do
      if scores[j] then standing[#standing + 1] = left[j] end
    end
    left = standing
  end
  for i = 1, #left do
    found[#found + 1] = left[i]
  end
end
return found
