#!lua flags=no-writes
--[[
What is kept of some profiles besides their memberships.

KEYS[1]    erasing   SET   profiles being erased
KEYS[2]    none      never exists
ARGV[1]    limit     integer  identities of one profile at most
ARGV[2..]  id        mixed ids; at most 200
Computed   <tag>:profile:<id>, <tag>:attributes:<id>, <tag>:identities:<id>, <tag>:m:<id>,
           <tag>:g:0:<depth>:<prefix>
Returns    a list per id: {state, custom_id, mpid, identities, identity, ...}. State is E being
           erased, - nothing known, N attributes or identities without a record, O a record outside
           group 0, R a record; identities is how many there are
Errors     none
Cost       O(ids), about 3 us each
]]
--- @include "include/tag_of"
--- @include "include/in_segment"
local erasing, limit = KEYS[1], tonumber(ARGV[1])
local call = redis.call
local tag = tag_of(erasing)
local reply = {}
for i = 2, #ARGV do
  local id = ARGV[i]
  local listed = tag .. ':identities:' .. id
  local state = 'R'
  if call('SISMEMBER', erasing, id) == 1 then
    state = 'E'
  elseif call('EXISTS', tag .. ':profile:' .. id) == 0 then
    state = call('EXISTS', tag .. ':attributes:' .. id, listed) > 0 and 'N' or '-'
  elseif not in_segment(tag, '0', id) then
    state = 'O'
  end
  local size = call('HLEN', listed)
  local shown = call('HMGET', tag .. ':profile:' .. id, 'custom_id', 'mpid')
  local row = {state, shown[1], shown[2], size}
  if state ~= 'E' and size <= limit then
    local identities = call('HKEYS', listed)
    for at = 1, #identities do
      row[4 + at] = identities[at]
    end
  end
  reply[i - 1] = row
end
return reply
