#!lua
--[[
Create a group's document with its ids and indexes, under a number that the caller reserved and
probed. An inactive group is created with an intent to install that state in every partition.

KEYS[1]    group      HASH    document of the group, with its version
KEYS[2]    ids        HASH    id -> number
KEYS[3]    custom_ids HASH    custom id -> number
KEYS[4]    intents    ZSET    numbers whose state is not yet installed everywhere -> version
KEYS[5]    version    STRING  raised by every change of the directory
KEYS[6..]  index      ZSET    indexes that the group enters; the last key never exists
ARGV[1]    number     integer
ARGV[2]    id         16 bytes of the UUID
ARGV[3]    custom_id  string, or ''
ARGV[4]    document   JSON
ARGV[5]    now        integer  microseconds since 1970
ARGV[6]    active     0 or 1
Computed   none
Returns    the document's version
Errors     TAKEN  the id, the custom id or the number is in use
Cost       O(indexes); safe to send twice
]]
--- @include "include/index_group"
--- @include "include/announce"
local group, ids, custom_ids, intents, version = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local number, id, custom_id, document, now = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local active = ARGV[6] == '1'
local call = redis.call
local holder = call('HGET', ids, id)
if holder == number then return call('HGET', group, 'version') end
if holder then return redis.error_reply('TAKEN id') end
if custom_id ~= '' and call('HEXISTS', custom_ids, custom_id) == 1 then
  return redis.error_reply('TAKEN custom_id')
end
if call('EXISTS', group) == 1 then return redis.error_reply('TAKEN number') end
call('HSET', group, 'document', document, 'version', now)
call('HSET', ids, id, number)
if custom_id ~= '' then call('HSET', custom_ids, custom_id, number) end
index_group(number, 6, #KEYS - 1)
if not active then call('ZADD', intents, now, number) end
announce(version, number)
return now
