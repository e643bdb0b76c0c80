#!lua flags=no-writes
--[[
Instances of a slot, and everybody who contributes to them: one bounded step of a walk through them.

KEYS[1]    stale     ZSET  instances whose members are not yet told
KEYS[2]    none      never exists
ARGV[1]    cursor    HSCAN cursor in the first instance, 0 to begin
ARGV[2]    budget    integer  after about as many contributions, or KiB, the step ends
ARGV[3..]  instance  ids; at most 200
Computed   <tag>:instance:<iid>, <tag>:contributors:<iid>, <tag>:formers:<iid>,
           <tag>:index:<number>:<bucket>
Returns    {done, cursor, instance, ...}: done instances are finished, cursor is where the next one
           goes on. Of each {number, value, version, rules, limit, stale, formers, indexed, held,
           ordered, field, value, rank, score, ...}: the header as it is held; stale and indexed are
           1 or 0; formers, contributions and contributors that it has; then fields that are none of
           the header, with rank and score of their order, nil where there is none
Errors     none
Cost       O(budget), about 5 us each
]]
--- @include "include/tag_of"
--- @include "include/index_key"
local stale = KEYS[1]
local cursor, budget = ARGV[1], tonumber(ARGV[2])
local call, match, sub = redis.call, string.match, string.sub
local tag = tag_of(stale)
local header = {number = true, value = true, version = true, rules = true, limit = true}
local reply = {0, '0'}
for i = 3, #ARGV do
  if budget <= 0 then break end
  local iid = ARGV[i]
  local key, contributors = tag .. ':instance:' .. iid, tag .. ':contributors:' .. iid
  local found = call('HMGET', key, 'number', 'value', 'version', 'rules', 'limit')
  local held = call('HLEN', key)
  for j = 1, 5 do
    if found[j] then held = held - 1 end
  end
  found[6] = call('ZSCORE', stale, iid) and 1 or 0
  found[7] = call('ZCARD', tag .. ':formers:' .. iid)
  found[8] = call('ZSCORE', index_key(tag, found[1] or '0', iid), iid) and 1 or 0
  found[9] = held
  found[10] = call('ZCARD', contributors)
  budget = budget - 2
  local step = call('HSCAN', key, cursor, 'COUNT', math.max(1, math.ceil(budget)))
  local size = 10
  for at = 1, #step[2], 2 do
    local field, value = step[2][at], step[2][at + 1]
    if not header[field] then
      local start = match(value, '^%d+ %d+ ()')
      local order = start and sub(value, start, start + 31)
      local rank = order and call('ZRANK', contributors, order) or false
      found[size + 1] = field
      found[size + 2] = value
      found[size + 3] = rank
      found[size + 4] = rank and call('ZSCORE', contributors, order)
      size = size + 4
      budget = budget - 1 - #value / 1024
    end
  end
  reply[#reply + 1] = found
  cursor = tostring(step[1])
  if cursor ~= '0' then
    reply[2] = cursor
    break
  end
  reply[1] = reply[1] + 1
end
return reply
