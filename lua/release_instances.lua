#!lua flags=allow-oom
--[[
Note that all who have to be were told of instances, if nothing of them has changed since they were
read. An instance that nobody contributes to any more goes; its version is remembered.

KEYS[1]    stale     ZSET  instances whose members are not yet told
KEYS[2]    ended     ZSET  instance and mixed id -> seq of an ended contribution; instance -> its
           last version
KEYS[3]    none      never exists
ARGV[1]    now       integer  microseconds since 1970
ARGV[2..]  repeated: instance; the version that was told; the highest version found with somebody;
           0 where nobody contributes to it, + where some do not count, else -
Computed   <tag>:instance:<iid>, <tag>:formers:<iid>, <tag>:index:<number>:<bucket>
Returns    string, a letter per instance: + released, 0 it is gone, V it has changed since, F
           somebody was told a higher version, so its own is above that now, to be told anew
Errors     none
Cost       O(instances), about 5 us each; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/index_key"
--- @include "include/raised"
local stale, ended = KEYS[1], KEYS[2]
local now = ARGV[1]
local call = redis.call
local tag = tag_of(stale)
local letters, done = {}, {}
for i = 2, #ARGV, 4 do
  local iid, version, highest, rest = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local key, letter = tag .. ':instance:' .. iid, '+'
  local held = call('HGET', key, 'version')
  if held and held ~= version then
    letter = 'V'
    -- Who fell out up to the version that was told knows it: else they were more and more for as
    -- long as others keep coming.
    if rest == '+' then
      call('ZREMRANGEBYSCORE', tag .. ':formers:' .. iid, '-inf', version)
    end
  elseif held and tonumber(highest) > tonumber(version) then
    call('HSET', key, 'version', raised(highest, now))
    letter = 'F'
  else
    if held and rest == '0' then
      call('ZREM', index_key(tag, call('HGET', key, 'number'), iid), iid)
      call('DEL', key)
      call('ZADD', ended, version, iid)
      letter = '0'
    end
    if rest == '+' then call('DEL', tag .. ':formers:' .. iid) end
    done[#done + 1] = iid
  end
  letters[#letters + 1] = letter
end
for i = 1, #done, 2000 do
  call('ZREM', stale, unpack(done, i, math.min(i + 1999, #done)))
end
return table.concat(letters)
