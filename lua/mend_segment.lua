#!lua flags=allow-oom
--[[
One bounded step of putting a segment in order: ids that are no members by their own side are taken
out, ids that belong into another segment are moved there, scores become 0.

KEYS[1]    erasing   SET   profiles being erased
KEYS[2]    none      never exists
ARGV[1]    group     integer  the group's number
ARGV[2]    depth     integer
ARGV[3]    prefix    integer
ARGV[4]    offset    integer  ids that were found right by earlier steps
ARGV[5]    limit     integer  ids at most
Computed   <tag>:g:<group>:<depth>:<prefix>, <tag>:count, <tag>:shape, <tag>:m:<id>,
           <tag>:profile:<id>
Returns    {more, offset, taken out, moved}: more is 1 where another step has to follow, from offset
Errors     none
Cost       O(limit), about 10 us each; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/has_fact"
--- @include "include/head_of"
--- @include "include/segments_of"
--- @include "include/segment_at"
--- @include "include/segment_key"
--- @include "include/in_segment"
--- @include "include/insert_members"
--- @include "include/drop_count"
local erasing = KEYS[1]
local group, offset, limit = ARGV[1], tonumber(ARGV[4]), tonumber(ARGV[5])
local call = redis.call
local tag = tag_of(erasing)
local key = tag .. ':g:' .. group .. ':' .. ARGV[2] .. ':' .. ARGV[3]
local count = tag .. ':count'
local taken, moved = 0, 0

-- The segment that an id belongs into by the shape of now: a move may have split some.
local function right_key(id)
  local depth, prefix = segment_at(segments_of(tag, group), head_of(id))
  return segment_key(tag, group, depth, prefix)
end

-- Does the shape of now know this segment? Only then do its ids count.
local function counted()
  local depth, prefix = tonumber(ARGV[2]), tonumber(ARGV[3])
  local from = prefix * (4294967296 / 2 ^ math.min(depth, 32))
  if from >= 4294967296 then return false end
  local real_depth, real_prefix = segment_at(segments_of(tag, group), from)
  return segment_key(tag, group, real_depth, real_prefix) == key
end

local function take_out(id)
  if call('ZREM', key, id) == 1 and counted() then
    if call('HINCRBY', count, group, -1) <= 0 then drop_count(count, group) end
  end
end

local scored = call('ZRANGE', key, '-inf', '(0', 'BYSCORE', 'LIMIT', 0, limit)
local above = call('ZRANGE', key, '(0', '+inf', 'BYSCORE', 'LIMIT', 0, limit)
for i = 1, #above do
  scored[#scored + 1] = above[i]
end
if #scored > 0 then
  for i = 1, #scored do
    call('ZADD', key, 0, scored[i])
  end
  return {1, 0, 0, #scored}
end
local ids = call('ZRANGE', key, offset, offset + limit - 1)
local kept = 0
for i = 1, #ids do
  local id = ids[i]
  local member = #id == 16
  if member then
    if group == '0' then
      member = has_fact(tag, id) or call('SISMEMBER', erasing, id) == 1
    else
      member = call('HEXISTS', tag .. ':m:' .. id, group) == 1
    end
  end
  if not member then
    take_out(id)
    taken = taken + 1
  elseif right_key(id) ~= key then
    take_out(id)
    if not in_segment(tag, group, id) then insert_members(tag, group, {id}) end
    moved = moved + 1
  else
    kept = kept + 1
  end
end
return {#ids == limit and 1 or 0, offset + kept, taken, moved}
