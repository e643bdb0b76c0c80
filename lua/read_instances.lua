#!lua flags=no-writes
--[[
Instances, with the contributions that count, in their order; as many as fit into one answer. What
does not is read from where it ended, and is of one piece if the version is the same.

KEYS[1]    stale     ZSET  instances whose members are not yet told
KEYS[2]    none      never exists
ARGV[1]    many      integer  contributions to answer at most
ARGV[2]    size      integer  bytes of contributions; after so many no further one is answered
ARGV[3]    limit     integer  how many may count in most of them: others take a command more
ARGV[4..]  instance, and how many contributions are known of it already, alternating
Computed   <tag>:instance:<iid>, <tag>:contributors:<iid>, <tag>:formers:<iid>
Returns    per instance 0 where there is none, else {number, value, version, rules, counted, total,
           stale, formers, contributions}: counted is how many count in all, stale 1 or 0; each
           contribution as it is held. Of instances that did not fit, which come last: nothing
Errors     none
Cost       O(contributions), about 10 us an instance and 1 us a contribution
]]
--- @include "include/tag_of"
local stale = KEYS[1]
local left, room, usual = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local call, sub = redis.call, string.sub
local tag = tag_of(stale)
local found, iids = {}, {}
for i = 4, #ARGV, 2 do iids[#iids + 1] = ARGV[i] end
local waiting = call('ZMSCORE', stale, unpack(iids))
for i = 4, #ARGV, 2 do
  if left <= 0 or room <= 0 then break end
  local iid, start = ARGV[i], tonumber(ARGV[i + 1])
  local key, contributors = tag .. ':instance:' .. iid, tag .. ':contributors:' .. iid
  local function read(limit)
    local fields = {'number', 'value', 'version', 'rules', 'limit'}
    local stop = math.min(tonumber(limit), start + left)
    local orders = call('ZRANGE', contributors, start, stop - 1)
    for j = 1, #orders do fields[5 + j] = sub(orders[j], 17) end
    return call('HMGET', key, unpack(fields))
  end
  local held = read(usual)
  local limit = held[5]
  if limit and limit ~= usual then held = read(limit) end
  if not limit then
    found[#found + 1] = 0
    left = left - 1
  else
    limit = tonumber(limit)
    local total = start + #held - 5
    if start > 0 or total >= math.min(limit, left) then total = call('ZCARD', contributors) end
    local formers = {}
    if total > limit then formers = call('ZRANGE', tag .. ':formers:' .. iid, 0, -1) end
    local contributions = {}
    for j = 6, #held do
      if room <= 0 then break end
      contributions[j - 5] = held[j]
      room = room - #held[j]
    end
    left = left - 1 - #contributions
    found[#found + 1] = {held[1], held[2], held[3], held[4], math.min(total, limit), total,
      waiting[#found + 1] and 1 or 0, formers, contributions}
  end
end
return found
