#!lua
--[[
List instances with the profiles that are about to contribute to them, if their facts are those that
were read: so that whoever comes later knows which contributions there may be.

KEYS[1]    rules     STRING  version of the rules in force here
KEYS[2]    erasing   SET     profiles being erased
KEYS[3]    none      never exists
ARGV[1]    version   integer  of the rules that the caller goes by
ARGV[2..]  repeated: mixed id; the seq that was read; how many instances follow; each instance's id
           and number of its definition
Computed   <tag>:profile:<id>, <tag>:instances:<id>
Returns    string, a letter per profile: + they are listed, S the facts have changed, or it is being
           erased
Errors     STALE  the version of the rules in force here, which is another one
Cost       O(ARGV), about 3 us a profile and 2 us an instance; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/rules_differ"
--- @include "include/seq_of"
local rules, erasing = KEYS[1], KEYS[2]
local version = ARGV[1]
local call = redis.call
local tag = tag_of(rules)
local differ = rules_differ(rules, version)
if differ then return differ end
local some_erasing = call('EXISTS', erasing) == 1
local letters = {}
local at = 2
while at <= #ARGV do
  local id, seq, first = ARGV[at], ARGV[at + 1], at + 3
  at = first + 2 * tonumber(ARGV[at + 2])
  if seq_of(tag, id) ~= seq or (some_erasing and call('SISMEMBER', erasing, id) == 1) then
    letters[#letters + 1] = 'S'
  else
    for i = first, at - 1, 2 do
      -- Not over what another process listed, and has told values already.
      call('HSETNX', tag .. ':instances:' .. id, ARGV[i], ARGV[i + 1] .. ' 0 0 ')
    end
    letters[#letters + 1] = '+'
  end
end
return table.concat(letters)
