#!lua
--[[
Have everybody who counts in an instance told anew, and those who are named, under a new version.

KEYS[1]    stale     ZSET  instances whose members are not yet told
KEYS[2]    none      never exists
ARGV[1]    instance  its id
ARGV[2]    now       integer  microseconds since 1970
ARGV[3]    limit     integer  how many contributions are to count, or '' where that stays
ARGV[4..]  id        mixed ids of those who were told something and do not count; at most 200
Computed   <tag>:instance:<iid>, <tag>:contributors:<iid>, <tag>:formers:<iid>
Returns    1, or 0 where there is no such instance
Errors     none
Cost       O(ids), and O(contributions that count no more)
]]
--- @include "include/tag_of"
--- @include "include/raised"
local stale = KEYS[1]
local iid, now, limit = ARGV[1], ARGV[2], ARGV[3]
local call = redis.call
local tag = tag_of(stale)
local key, formers = tag .. ':instance:' .. iid, tag .. ':formers:' .. iid
local contributors = tag .. ':contributors:' .. iid
local held = call('HMGET', key, 'version', 'limit')
if not held[1] then return 0 end
local version = raised(held[1], now)
local counting = tonumber(limit ~= '' and limit or held[2])
if call('ZCARD', contributors) > counting then
  for _, order in ipairs(call('ZRANGE', contributors, counting, tonumber(held[2]) - 1)) do
    call('ZADD', formers, version, string.sub(order, 17))
  end
  for i = 4, #ARGV do
    if call('HEXISTS', key, ARGV[i]) == 1 then call('ZADD', formers, version, ARGV[i]) end
  end
else
  -- All that there are count, and will be told so.
  call('DEL', formers)
end
if limit ~= '' then call('HSET', key, 'limit', limit) end
call('HSET', key, 'version', version)
call('ZADD', stale, 'NX', now, iid)
return 1
