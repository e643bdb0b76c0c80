#!lua flags=no-writes
--[[
Whether profiles know identities that resolve to them.

KEYS[1]    erasing   SET   profiles being erased
KEYS[2]    none      never exists
ARGV[1..]  mixed id and identity, alternating; at most 200 of each
Computed   <tag>:profile:<id>, <tag>:identities:<id>
Returns    string, a letter per pair: E the profile is being erased, L it lists the identity, R it has
           a record and does not list it, - neither
Errors     none
Cost       O(pairs), about 2 us each
]]
--- @include "include/tag_of"
local erasing = KEYS[1]
local call = redis.call
local tag = tag_of(erasing)
local letters = {}
for i = 1, #ARGV, 2 do
  local id = ARGV[i]
  local letter = '-'
  if call('SISMEMBER', erasing, id) == 1 then
    letter = 'E'
  elseif call('HEXISTS', tag .. ':identities:' .. id, ARGV[i + 1]) == 1 then
    letter = 'L'
  elseif call('EXISTS', tag .. ':profile:' .. id) == 1 then
    letter = 'R'
  end
  letters[#letters + 1] = letter
end
return table.concat(letters)
