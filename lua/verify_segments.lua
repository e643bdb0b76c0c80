#!lua flags=no-writes
--[[
What is wrong with some segments: one that the group's shape has no place for, ids that lie in
another segment, ids that are no members by their own side.

KEYS[1]    shape     HASH  segments of groups in this partition
KEYS[2]    erasing   SET   profiles being erased
KEYS[3]    none      never exists
ARGV[1]    offset    integer  the first id to look at in the first segment
ARGV[2]    budget    integer  after as many ids the step ends
ARGV[3..]  group, depth, prefix, repeated: segments
Computed   <tag>:g:<group>:<depth>:<prefix>, <tag>:m:<id>, <tag>:profile:<id>
Returns    {done, offset, {members, ...}, {segment, wrong, id, ...}}: done segments are finished,
           with that many members each; offset is where the next one goes on; a segment's place
           counts from 0. Wrong is shape (no such segment), size (an id that is not 16 bytes),
           place (the id belongs into another segment), ghost (no membership or, in group 0, no
           fact), score
Errors     none
Cost       O(budget), about 2 us each
]]
--- @include "include/tag_of"
--- @include "include/head_of"
--- @include "include/segments_of"
--- @include "include/segment_at"
--- @include "include/segment_key"
--- @include "include/has_fact"
local erasing = KEYS[2]
local offset, budget = tonumber(ARGV[1]), tonumber(ARGV[2])
local call = redis.call
local tag = tag_of(KEYS[1])
local some_erasing = call('EXISTS', erasing) == 1
local sizes, found = {}, {}
local function wrong(place, what, id)
  local size = #found
  found[size + 1] = place
  found[size + 2] = what
  found[size + 3] = id
end
local done = 0
for i = 3, #ARGV, 3 do
  if budget <= 0 then break end
  local group, depth, prefix = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local key = tag .. ':g:' .. group .. ':' .. ARGV[i + 1] .. ':' .. ARGV[i + 2]
  local size = call('ZCARD', key)
  local width = 4294967296 / 2 ^ math.min(depth, 32)
  local from = prefix * width
  local known = false
  if from < 4294967296 then
    local real_depth, real_prefix = segment_at(segments_of(tag, group), from)
    known = segment_key(tag, group, real_depth, real_prefix) == key
  end
  if not known then
    if size > 0 then wrong(done, 'shape', '') end
    size, offset = 0, 0
    budget = budget - 1
  else
    local last = offset + budget - 1
    local ids = call('ZRANGE', key, offset, last, 'WITHSCORES')
    for at = 1, #ids, 2 do
      local id = ids[at]
      if #id ~= 16 then
        wrong(done, 'size', id)
      else
        local h = head_of(id)
        if h < from or h >= from + width then wrong(done, 'place', id) end
        if tonumber(ids[at + 1]) ~= 0 then wrong(done, 'score', id) end
        local member
        if group == '0' then
          member = has_fact(tag, id) or (some_erasing and call('SISMEMBER', erasing, id) == 1)
        else
          member = call('HEXISTS', tag .. ':m:' .. id, group) == 1
        end
        if not member then wrong(done, 'ghost', id) end
      end
    end
    budget = budget - 1 - #ids / 2
    if last + 1 < size then
      offset = last + 1
      break
    end
    offset = 0
  end
  done = done + 1
  sizes[done] = size
end
return {done, offset, sizes, found}
