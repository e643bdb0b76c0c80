#!lua flags=no-writes
--[[
One bounded step of walking the groups that stand in all the given indexes, in the order of their
numbers.

KEYS[1..]  index     ZSET  indexes of active groups, then as many of inactive ones where those are
                           wanted; the last key never exists
ARGV[1]    wanted    integer  how many indexes of active groups
ARGV[2]    backward  0 or 1: ascending, or descending
ARGV[3]    bound     number that the step begins at, inclusive; '' from the very end
ARGV[4]    limit     integer  groups at most
ARGV[5]    scan      integer  index entries to look at, at most
ARGV[6]    documents 0 or 1: with the documents
Computed   <tag>:group:<number>
Returns    {last, number, document, version, number, ...}: last is the last number looked at, '' at
           the end; document and version are left out where not asked for
Errors     none
Cost       O(scan x indexes), about 1 us each, and 1.2 us a kB of documents, of which a step gives
           a million bytes and one more
]]
--- @include "include/tag_of"
--- @include "include/walk_index"
local wanted, backward, bound = tonumber(ARGV[1]), ARGV[2] == '1', ARGV[3]
local limit, scan, documents = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == '1'
local groups = tag_of(KEYS[1]) .. ':group:'
local found, last = walk_index(1, wanted, backward, bound, limit, scan)
if #KEYS - 1 > wanted then
  local inactive, stop = walk_index(wanted + 1, #KEYS - 1, backward, bound, limit, scan)
  for i = 1, #inactive do
    found[#found + 1] = inactive[i]
  end
  local function before(a, b)
    if backward then return tonumber(a) > tonumber(b) end
    return tonumber(a) < tonumber(b)
  end
  table.sort(found, before)
  if not last or (stop and before(stop, last)) then last = stop end
  while #found > 0 and last and before(last, found[#found]) do
    found[#found] = nil
  end
  if #found > limit then
    last = found[limit]
    while #found > limit do
      found[#found] = nil
    end
  end
end
local step, bytes = {last or ''}, 0
for i = 1, #found do
  step[#step + 1] = found[i]
  if documents then
    local held = redis.call('HMGET', groups .. found[i], 'document', 'version')
    step[#step + 1] = held[1]
    step[#step + 1] = held[2]
    bytes = bytes + (held[1] and #held[1] or 0)
    if bytes > 1000000 and i < #found then
      step[1] = found[i]
      break
    end
  end
end
return step
