#!lua flags=allow-oom
--[[
One bounded step of forgetting states that say no more than their absence: active ones, and those
of groups that are gone, once they are older than `before`.

KEYS[1]    state     HASH  state of groups in this partition
KEYS[2]    none      never exists
ARGV[1]    cursor    HSCAN cursor, 0 to begin
ARGV[2]    before    integer  microseconds since 1970
Computed   none
Returns    {cursor, purged}; cursor 0 at the end
Errors     none
Cost       O(100); safe to send twice
]]
local state = KEYS[1]
local cursor, before = ARGV[1], tonumber(ARGV[2])
local found = redis.call('HSCAN', state, cursor, 'COUNT', 100)
local purged = 0
for i = 1, #found[2], 2 do
  local value = found[2][i + 1]
  local letter = string.sub(value, -1)
  if (letter == 'a' or letter == 'g') and tonumber(string.match(value, '^%d+')) < before then
    purged = purged + redis.call('HDEL', state, found[2][i])
  end
end
return {found[1], purged}
