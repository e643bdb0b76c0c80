#!lua flags=allow-oom
--[[
Note that what follows from facts of profiles is done, if they are still as read: instances that
they no longer contribute to leave their lists, and they are not behind any more.

KEYS[1]    rules     STRING  version of the rules in force here
KEYS[2]    dirty     ZSET    profiles whose derived data is behind
KEYS[3]    none      never exists
ARGV[1]    version   integer  of the rules that the caller goes by
ARGV[2..]  repeated: mixed id; the seq that was read; how many instances follow; each instance
Computed   <tag>:profile:<id>, <tag>:instances:<id>
Returns    string, a letter per profile: + it is done, S the facts have changed
Errors     STALE  the version of the rules in force here, which is another one
Cost       O(ARGV), about 3 us a profile and 1 us an instance; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/rules_differ"
--- @include "include/seq_of"
local rules, dirty = KEYS[1], KEYS[2]
local version = ARGV[1]
local call = redis.call
local tag = tag_of(rules)
local differ = rules_differ(rules, version)
if differ then return differ end
local letters, done = {}, {}
local at = 2
while at <= #ARGV do
  local id, seq, first = ARGV[at], ARGV[at + 1], at + 3
  at = first + tonumber(ARGV[at + 2])
  if seq_of(tag, id) ~= seq then
    letters[#letters + 1] = 'S'
  else
    for i = first, at - 1 do
      call('HDEL', tag .. ':instances:' .. id, ARGV[i])
    end
    done[#done + 1] = id
    letters[#letters + 1] = '+'
  end
end
for i = 1, #done, 2000 do
  call('ZREM', dirty, unpack(done, i, math.min(i + 1999, #done)))
end
return table.concat(letters)
