#!lua flags=no-writes
--[[
What is wrong with the memberships of some profiles: groups whose segments do not know them, group
0, the number of derived ones. Profiles being erased are passed over.

KEYS[1]    shape     HASH  segments of groups in this partition
KEYS[2]    erasing   SET   profiles being erased
KEYS[3]    dynamic   SET   numbers of dynamic groups that have had members here
KEYS[4]    none      never exists
ARGV[1]    cursor    HSCAN cursor in the memberships of the first id, 0 to begin
ARGV[2]    budget    integer  after about as many memberships the step ends
ARGV[3]    ids       packed mixed ids, 16 bytes each
Computed   <tag>:m:<id>, <tag>:g:<group>:<depth>:<prefix>, <tag>:profile:<id>
Returns    {done, cursor, id, wrong, detail, ...}: done ids are finished, cursor is where the next
           one goes on. Wrong is missing (detail: a group that does not hold the id), field (a field
           that is no group), joined (a group without a time), derived (the value of `d`, '' where
           it is missing), large (as derived, of so many memberships that they are to be counted
           elsewhere), outside (a fact, but not in group 0), inside (in group 0 without any fact)
Errors     none
Cost       O(budget), about 2 us each
]]
--- @include "include/tag_of"
--- @include "include/has_fact"
--- @include "include/segments_of"
--- @include "include/in_segment"
local erasing, dynamic = KEYS[2], KEYS[3]
local cursor, budget, packed = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local call, match = redis.call, string.match
local tag = tag_of(KEYS[1])
local reply = {0, '0'}
local looked = 0
local shapes = {}
local some_dynamic = call('EXISTS', dynamic) == 1
-- How many of a profile's memberships are derived; nil where they are too many to look at here.
local function derived_of(key, size)
  if not some_dynamic then return 0 end
  if size == 0 then return 0 end
  if size > 1000 then return nil end
  local found = call('SMISMEMBER', dynamic, unpack(call('HKEYS', key)))
  local derived = 0
  for j = 1, #found do derived = derived + found[j] end
  looked = looked + size / 10
  return derived
end
local function wrong(id, what, detail)
  local size = #reply
  reply[size + 1] = id
  reply[size + 2] = what
  reply[size + 3] = detail
end
for i = 1, #packed, 16 do
  if looked >= budget then break end
  local id = string.sub(packed, i, i + 15)
  local key = tag .. ':m:' .. id
  local fields = {}
  if call('SISMEMBER', erasing, id) == 1 then
    cursor = '0'
  else
    if cursor == '0' then
      local said, size = call('HGET', key, 'd'), call('HLEN', key)
      local derived = derived_of(key, size)
      local number = said and match(said, '^[1-9]%d*$') and tonumber(said)
      local everybody = shapes['0'] or segments_of(tag, '0')
      shapes['0'] = everybody
      local inside = in_segment(tag, '0', id, everybody)
      if said and not (number and number < size) or derived and derived ~= (number or 0) then
        wrong(id, 'derived', said or '')
      else
        if not derived then wrong(id, 'large', said or '') end
        if has_fact(tag, id) ~= inside then wrong(id, inside and 'inside' or 'outside', '') end
      end
    end
    local step = call('HSCAN', key, cursor, 'COUNT', budget)
    cursor, fields = tostring(step[1]), step[2]
  end
  for at = 1, #fields, 2 do
    local field, joined_at = fields[at], fields[at + 1]
    if field ~= 'd' then
      if not match(field, '^[1-9]%d*$') then
        wrong(id, 'field', field)
      else
        if not match(joined_at, '^%d+$') then wrong(id, 'joined', field) end
        local segments = shapes[field] or segments_of(tag, field)
        shapes[field] = segments
        if not in_segment(tag, field, id, segments) then wrong(id, 'missing', field) end
      end
    end
  end
  looked = looked + 1 + #fields / 2
  if cursor ~= '0' then
    reply[2] = cursor
    break
  end
  reply[1] = reply[1] + 1
end
return reply
