#!lua flags=no-writes
--[[
Which of some groups are dynamic?

KEYS[1]    active    ZSET  active dynamic groups
KEYS[2]    inactive  ZSET  inactive dynamic groups
KEYS[3]    none      never exists
ARGV[1..]  group     integer  numbers of groups; at most 500
Computed   none
Returns    string, a letter per number: 1 dynamic, 0 not
Errors     none
Cost       O(numbers), about 1 us each
]]
local active = redis.call('ZMSCORE', KEYS[1], unpack(ARGV))
local inactive = redis.call('ZMSCORE', KEYS[2], unpack(ARGV))
local letters = {}
for i = 1, #ARGV do
  letters[i] = (active[i] or inactive[i]) and '1' or '0'
end
return table.concat(letters)
