#!lua flags=no-writes
--[[
What changed of some profiles, and rules have yet to follow; and whether they are entered for it.

KEYS[1]    unsettled ZSET  profiles of which something changed -> since
KEYS[2]    none      never exists
ARGV[1]    limit     integer  names of one profile at most
ARGV[2..]  id        mixed ids; at most 200
Computed   <tag>:changed:<id>
Returns    a list per id: {since, size, name, ...}: since as it is entered, nil where it is not; how
           many names there are, and they themselves where there are no more than `limit`
Errors     none
Cost       O(ids x limit), about 0.3 us each
]]
--- @include "include/tag_of"
local unsettled, limit = KEYS[1], tonumber(ARGV[1])
local call = redis.call
local tag = tag_of(unsettled)
local reply = {}
for i = 2, #ARGV do
  local key = tag .. ':changed:' .. ARGV[i]
  local size = call('SCARD', key)
  local row = {call('ZSCORE', unsettled, ARGV[i]), size}
  if size <= limit then
    local names = call('SMEMBERS', key)
    for at = 1, #names do row[2 + at] = names[at] end
  end
  reply[i - 1] = row
end
return reply
