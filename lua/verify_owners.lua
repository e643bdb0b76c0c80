#!lua flags=no-writes
--[[
Whether profiles know identities that resolve to them.

KEYS[1]    erasing   SET   profiles being erased
KEYS[2]    none      never exists
ARGV[1..]  mixed id, identity and since, repeated; at most 200 of each
Computed   <tag>:profile:<id>, <tag>:identities:<id>
Returns    string, a letter per identity: E the profile is being erased, L it lists the identity, S
           it does so since another moment, R it has a record and does not list it, - neither
Errors     none
Cost       O(pairs), about 2 us each
]]
--- @include "include/tag_of"
local erasing = KEYS[1]
local call = redis.call
local tag = tag_of(erasing)
local letters = {}
for i = 1, #ARGV, 3 do
  local id = ARGV[i]
  local letter = '-'
  local since = call('HGET', tag .. ':identities:' .. id, ARGV[i + 1])
  if call('SISMEMBER', erasing, id) == 1 then
    letter = 'E'
  elseif since then
    letter = since == ARGV[i + 2] and 'L' or 'S'
  elseif call('EXISTS', tag .. ':profile:' .. id) == 1 then
    letter = 'R'
  end
  letters[#letters + 1] = letter
end
return table.concat(letters)
