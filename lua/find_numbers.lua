#!lua flags=no-writes
--[[
The numbers of groups by their ids.

KEYS[1]    ids       HASH  id -> number
KEYS[2]    none      never exists
ARGV[1]    ids       packed ids, 16 bytes each; at most 1,000
Computed   none
Returns    {number or nil, ...}, one per id
Errors     none
Cost       O(ids), about 0.5 us each
]]
local ids, packed = KEYS[1], ARGV[1]
local wanted = {}
for i = 1, #packed, 16 do
  wanted[#wanted + 1] = string.sub(packed, i, i + 15)
end
return redis.call('HMGET', ids, unpack(wanted))
