#!lua flags=no-writes
--[[
What is remembered of batches that profiles were sent.

KEYS[1]    erasing   SET   profiles being erased
KEYS[2]    none      never exists
ARGV[1]    budget    integer  after about as many batches the step ends
ARGV[2..]  id        mixed ids; at most 200
Computed   <tag>:requests:<id>, <tag>:profile:<id>
Returns    {state, milliseconds, entry, ...} per id, of the first ones: state is E being erased, R a
           record, - none; after how long it goes by itself, -1 never, -2 it is gone; then entries
           that are no hash of 16 bytes
Errors     none
Cost       O(budget), under 1 us each
]]
--- @include "include/tag_of"
local erasing, budget = KEYS[1], tonumber(ARGV[1])
local call = redis.call
local tag = tag_of(erasing)
local reply = {}
for i = 2, #ARGV do
  if budget <= 0 then break end
  local id = ARGV[i]
  local key = tag .. ':requests:' .. id
  local state = call('EXISTS', tag .. ':profile:' .. id) == 1 and 'R' or '-'
  if call('SISMEMBER', erasing, id) == 1 then state = 'E' end
  local row = {state, call('PTTL', key)}
  local entries = call('ZRANGE', key, 0, -1)
  for at = 1, #entries do
    if #entries[at] ~= 16 then row[#row + 1] = entries[at] end
  end
  reply[#reply + 1] = row
  budget = budget - 1 - #entries
end
return reply
