#!lua flags=no-writes
--[[
What derivation has to know of profiles: what they have of the attributes that definitions name, and
which instances they are listed with. Of as many of them as fit into one answer, at least one.

KEYS[1]    rules     STRING  version of the rules in force here
KEYS[2]    erasing   SET     profiles being erased
KEYS[3]    dirty     ZSET    profiles whose derived data is behind
KEYS[4]    none      never exists
ARGV[1]    version   integer  of the rules that the caller goes by
ARGV[2]    limit     integer  bytes of values; after so many no further profile is answered for
ARGV[3]    names     integer  how many names of attributes follow; 0: all attributes are asked for
ARGV[4..]  the names, then the profiles: mixed id, repeated
Computed   <tag>:profile:<id>, <tag>:attributes:<id>, <tag>:instances:<id>
Returns    {state, seq, mpid, values, instances} per profile: state E being erased, D dirty, C not;
           seq '' where there is no record, mpid '' without one; values as they are held, nil where
           there is none (for all attributes: names and values, alternating); instances, and of
           each + where values were told, else -, before the version that was
Errors     STALE  the version of the rules in force here, which is another one
Cost       O(profiles x names), about 15 us and 0.3 us a name each
]]
--- @include "include/tag_of"
--- @include "include/rules_differ"
local rules, erasing, dirty = KEYS[1], KEYS[2], KEYS[3]
local version, limit, count = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local call, match = redis.call, string.match
local tag = tag_of(rules)
local profile, attributes = tag .. ':profile:', tag .. ':attributes:'
local instances = tag .. ':instances:'
local differ = rules_differ(rules, version)
if differ then return differ end
local some_erasing = call('EXISTS', erasing) == 1
local names, ids = {}, {}
for i = 1, count do names[i] = ARGV[3 + i] end
for i = 4 + count, #ARGV do ids[#ids + 1] = ARGV[i] end
local behind = call('ZMSCORE', dirty, unpack(ids))
local found, size = {}, 0
for n = 1, #ids do
  if size > limit then break end
  local id = ids[n]
  local record = call('HMGET', profile .. id, 'seq', 'created_at', 'mpid')
  local state = behind[n] and 'D' or 'C'
  local values = {}
  if some_erasing and call('SISMEMBER', erasing, id) == 1 then
    state = 'E'
  elseif record[1] or record[2] then
    if count == 0 then
      values = call('HGETALL', attributes .. id)
    else
      values = call('HMGET', attributes .. id, unpack(names))
    end
    for i = 1, #values do
      if values[i] then size = size + #values[i] end
    end
  end
  local listed = call('HGETALL', instances .. id)
  for i = 2, #listed, 2 do
    local told, at = match(listed[i], '^%d+ (%d+) %d+ ()')
    listed[i] = (at <= #listed[i] and '+' or '-') .. told
  end
  found[n] = {state, record[1] or (record[2] and '0') or '', record[3] or '', values, listed}
end
return found
