#!lua
--[[
Enter profiles as unsettled of which something changed, and take those out of which nothing did; or
forget what is noted of somebody who does not belong into this partition.

KEYS[1]    unsettled ZSET  profiles of which something changed -> since
KEYS[2]    none      never exists
ARGV[1]    now       integer  microseconds since 1970
ARGV[2]    forget    1 to forget what is noted, else 0
ARGV[3..]  entry     what is entered, or changed: mixed ids
Computed   <tag>:changed:<id>
Returns    string, a letter per entry: + is entered, - is not
Errors     none
Cost       O(entries), about 2 us each; safe to send twice
]]
--- @include "include/tag_of"
local unsettled, now, forget = KEYS[1], ARGV[1], ARGV[2] == '1'
local call = redis.call
local tag = tag_of(unsettled)
local letters = {}
for i = 3, #ARGV do
  local entry = ARGV[i]
  local changed = tag .. ':changed:' .. entry
  if forget then call('UNLINK', changed) end
  if call('EXISTS', changed) == 1 then
    local since = tonumber(call('ZSCORE', unsettled, entry) or '-1')
    if since < 0 or since >= 2 ^ 53 then call('ZADD', unsettled, now, entry) end
    letters[#letters + 1] = '+'
  else
    call('ZREM', unsettled, entry)
    letters[#letters + 1] = '-'
  end
end
return table.concat(letters)
