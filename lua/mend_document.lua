#!lua
--[[
Enter a group into all that its document says: its id, its custom id, its indexes.

KEYS[1]    group      HASH    document of the group, with its version
KEYS[2]    ids        HASH    id -> number
KEYS[3]    custom_ids HASH    custom id -> number
KEYS[4]    version    STRING  raised by every change of the directory
KEYS[5..]  index      ZSET    its indexes; the last key never exists
ARGV[1]    number     integer
ARGV[2]    expected   the document that the caller read
ARGV[3]    id         16 bytes of the UUID, or '' where another group has it by right
ARGV[4]    custom_id  string, or '' where it has none, or another group has it by right
Computed   none
Returns    how many entries were written
Errors     STALE  the document changed since, or is gone
Cost       O(indexes); safe to send twice
]]
--- @include "include/announce"
local group, ids, custom_ids, version = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local number, expected, id, custom_id = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local call = redis.call
if call('HGET', group, 'document') ~= expected then
  return redis.error_reply('STALE group ' .. number)
end
local written = 0
if id ~= '' and call('HGET', ids, id) ~= number then
  call('HSET', ids, id, number)
  written = written + 1
end
if custom_id ~= '' and call('HGET', custom_ids, custom_id) ~= number then
  call('HSET', custom_ids, custom_id, number)
  written = written + 1
end
for i = 5, #KEYS - 1 do
  local score = call('ZSCORE', KEYS[i], number)
  if not score or tonumber(score) ~= tonumber(number) then
    call('ZADD', KEYS[i], number, number)
    written = written + 1
  end
end
if written > 0 then announce(version, number) end
return written
