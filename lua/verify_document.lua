#!lua flags=no-writes
--[[
Whether the directory finds a group wherever its document says.

KEYS[1]    group      HASH  document of the group, with its version
KEYS[2]    ids        HASH  id -> number
KEYS[3]    custom_ids HASH  custom id -> number
KEYS[4..]  index      ZSET  indexes that the group should be in; the last key never exists
ARGV[1]    number     integer
ARGV[2]    id         16 bytes of the UUID
ARGV[3]    custom_id  string, or ''
Computed   none
Returns    {document, version, id's number, custom id's number, score, ...}: a score per index; nil
           for what is not there
Errors     none
Cost       O(indexes)
]]
local call = redis.call
local held = call('HMGET', KEYS[1], 'document', 'version')
local reply = {held[1], held[2], call('HGET', KEYS[2], ARGV[2]), false}
if ARGV[3] ~= '' then reply[4] = call('HGET', KEYS[3], ARGV[3]) end
for i = 4, #KEYS - 1 do
  reply[i + 1] = call('ZSCORE', KEYS[i], ARGV[1])
end
return reply
