#!lua flags=no-writes
--[[
All that is known of some profiles of this partition, in the order of their mixed ids, from one
bound on. Those being erased are passed over.

KEYS[1]    shape     HASH  segments of groups in this partition
KEYS[2]    erasing   SET   profiles being erased
KEYS[3]    none      never exists
ARGV[1]    bound     '' or an id after ( or [, where the step begins, as ZRANGE BYLEX writes it
ARGV[2]    limit     integer  profiles at most
ARGV[3]    budget    integer  after so many fields the step ends; half a KiB of custom data counts
           as one
Computed   <tag>:g:0:<depth>:<prefix>, <tag>:profile:<id>, <tag>:attributes:<id>,
           <tag>:identities:<id>, <tag>:m:<id>, <tag>:dynamic
Returns    {bound, {id, record, attributes, identities, memberships}, ...}: bound is where the next
           step begins, '' at the end; the others are fields and values, alternating, memberships
           those of static groups. A profile with
           more fields than the budget comes as {id, record}: the rest is walked by `export_fields`
Errors     none
Cost       O(limit + budget), about 4 us a profile and 1 us a field
]]
--- @include "include/tag_of"
--- @include "include/walk_members"
--- @include "include/static_fields"
local erasing = KEYS[2]
local bound, limit, budget = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local call = redis.call
local tag = tag_of(erasing)
local ids, left = walk_members(tag, '0', false, bound, limit)
local next_bound = left or ''
if #ids == limit then next_bound = '(' .. ids[#ids] end
local reply = {next_bound}
local some_erasing = call('EXISTS', erasing) == 1
local some_derived = call('EXISTS', tag .. ':dynamic') == 1
local spent = 0
for i = 1, #ids do
  local id = ids[i]
  if not (some_erasing and call('SISMEMBER', erasing, id) == 1) then
    local record, attributes = tag .. ':profile:' .. id, tag .. ':attributes:' .. id
    local identities, memberships = tag .. ':identities:' .. id, tag .. ':m:' .. id
    local size = call('HLEN', attributes) + call('HLEN', identities) + call('HLEN', memberships)
    local weight = size + math.floor(call('HSTRLEN', record, 'custom_data') / 512)
    if spent > 0 and spent + weight > budget then
      reply[1] = '[' .. id
      break
    end
    spent = spent + weight + 1
    local row = {id, call('HGETALL', record)}
    if size <= budget then
      row[3] = call('HGETALL', attributes)
      row[4] = call('HGETALL', identities)
      row[5] = call('HGETALL', memberships)
      if some_derived then row[5] = static_fields(tag, row[5]) end
    end
    reply[#reply + 1] = row
  end
end
return reply
