#!lua flags=allow-oom
--[[
Take an instance apart, whatever it is made of: those who contribute to it make it anew. Its version
is remembered as that of one that ended, where it can be read.

KEYS[1]    stale     ZSET  instances whose members are not yet told
KEYS[2]    ended     ZSET  instance and mixed id -> seq of its end; instance -> version
KEYS[3]    none      never exists
ARGV[1]    instance  its id
Computed   <tag>:instance:<iid>, <tag>:contributors:<iid>, <tag>:formers:<iid>,
           <tag>:index:<number>:<bucket>
Returns    how many keys went
Errors     none
Cost       O(1); what they held is freed in the background; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/index_key"
local stale, ended = KEYS[1], KEYS[2]
local iid = ARGV[1]
local call, match = redis.call, string.match
local tag = tag_of(stale)
local key = tag .. ':instance:' .. iid
local header = call('HMGET', key, 'number', 'version')
if match(header[2] or '', '^%d+$') and tonumber(header[2]) < 2 ^ 53 then
  call('ZADD', ended, header[2], iid)
end
if header[1] then
  call('ZREM', index_key(tag, header[1], iid), iid)
end
call('ZREM', stale, iid)
return call('UNLINK', key, tag .. ':contributors:' .. iid, tag .. ':formers:' .. iid)
