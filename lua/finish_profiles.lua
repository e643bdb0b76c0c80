#!lua flags=allow-oom
--[[
Note that what follows from facts of profiles is done, if they are still as read: instances that
they no longer contribute to leave their lists, and they are not behind any more. Where such a one
had told what rules name, it is noted that memberships of dynamic groups have to follow.

KEYS[1]    rules     STRING  version of the rules in force here
KEYS[2]    dirty     ZSET    profiles whose derived data is behind
KEYS[3]    none      never exists
ARGV[1]    version   integer  of the rules that the caller goes by
ARGV[2]    now       integer  microseconds since 1970
ARGV[3..]  repeated: mixed id; the seq that was read; how many instances follow; each instance
Computed   <tag>:profile:<id>, <tag>:instances:<id>, <tag>:named, <tag>:changed:<id>,
           <tag>:unsettled
Returns    string, a letter per profile: + it is done, S the facts have changed
Errors     STALE  the version of the rules in force here, which is another one
Cost       O(ARGV), about 3 us a profile and 2 us an instance; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/rules_differ"
--- @include "include/seq_of"
--- @include "include/mark_unsettled"
--- @include "include/named_of"
local rules, dirty = KEYS[1], KEYS[2]
local version, now = ARGV[1], ARGV[2]
local call, match = redis.call, string.match
local tag = tag_of(rules)
local differ = rules_differ(rules, version)
if differ then return differ end
local any_named = call('EXISTS', tag .. ':named') == 1
local letters, done = {}, {}

-- Forget an instance of a profile; what that changes for rules.
local function forget(id, iid, changed)
  local key = tag .. ':instances:' .. id
  if any_named then
    local number, from = match(call('HGET', key, iid) or '', '^(%d+) %d+ %d+ ().')
    if number then changed[#changed + 1] = '\0:' .. number end
  end
  call('HDEL', key, iid)
end

local at = 3
while at <= #ARGV do
  local id, seq, first = ARGV[at], ARGV[at + 1], at + 3
  at = first + tonumber(ARGV[at + 2])
  if seq_of(tag, id) ~= seq then
    letters[#letters + 1] = 'S'
  else
    local changed = {}
    for i = first, at - 1 do forget(id, ARGV[i], changed) end
    if #changed > 0 then
      local names = {}
      for name in pairs(named_of(tag, changed) or {}) do names[#names + 1] = name end
      mark_unsettled(tag, {id}, names, now)
    end
    done[#done + 1] = id
    letters[#letters + 1] = '+'
  end
end
for i = 1, #done, 2000 do
  call('ZREM', dirty, unpack(done, i, math.min(i + 1999, #done)))
end
return table.concat(letters)
