#!lua flags=allow-oom
--[[
Take wake-up calls whose time has come: the rules that time may have turned are noted as to be
looked at. On a full store, too: the note takes about what the call did, and others go by it.

KEYS[1]    due       ZSET  mixed id and group -> when time alone may turn the group's rule
KEYS[2]    unsettled ZSET  profiles of which something changed that rules have yet to follow
KEYS[3]    none      never exists
ARGV[1]    now       integer  microseconds since 1970
ARGV[2]    limit     integer  calls at most
Computed   <tag>:changed:<id>
Returns    the calls: mixed id and group
Errors     none
Cost       O(limit), about 3 us each; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/mark_unsettled"
local due = KEYS[1]
local now, limit = ARGV[1], ARGV[2]
local tag = tag_of(due)
local calls = redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, limit)
for i = 1, #calls do
  local id, group = string.sub(calls[i], 1, 16), string.sub(calls[i], 17)
  mark_unsettled(tag, {id}, {'\0=' .. group}, now)
end
for i = 1, #calls, 2000 do
  redis.call('ZREM', due, unpack(calls, i, math.min(i + 1999, #calls)))
end
return calls
