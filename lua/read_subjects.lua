#!lua flags=no-writes
--[[
What rules have to know of profiles: what changed of them, what they have of the attributes that
rules name, in which of some groups they are, and what they inherit by some definitions. Of as many
of them as fit into one answer, at least one.

KEYS[1]    rules     STRING  version of the rules in force here
KEYS[2]    erasing   SET     profiles being erased
KEYS[3]    unsettled ZSET    profiles of which something changed that rules have yet to follow
KEYS[4]    due       ZSET    mixed id and group -> when time alone may turn the group's rule
KEYS[5]    dynamic   SET     numbers of dynamic groups that have had members here
KEYS[6]    none      never exists
ARGV[1]    version   integer  of the rules that the caller goes by
ARGV[2]    limit     integer  bytes of values; after so many no further profile is answered for
ARGV[3]    names     integer  how many names of attributes follow; -1: all attributes are asked for
ARGV[4]    groups    integer  how many numbers of groups follow; -1: all memberships are asked for
ARGV[5]    definitions  integer  how many numbers of definitions follow
ARGV[6]    timed     integer  how many numbers of groups follow whose wake-up calls are asked for
ARGV[7..]  the names, the groups, the definitions, the timed ones, then the profiles: mixed id,
           repeated; at most 1,000 of each
Computed   <tag>:profile:<id>, <tag>:attributes:<id>, <tag>:instances:<id>, <tag>:m:<id>,
           <tag>:changed:<id>
Returns    {state, seq, values, memberships, instances, changed, due} per profile: state E being
           erased (and nothing else), else U something changed or C nothing, and 1 where there is
           any fact, else 0; seq '' where there is no record; values as they are held, nil where
           there is none (of all attributes: names and values, alternating); memberships, a 1 or 0
           for each group (of all: the fields, derived ones after a -); instances and what was told
           of them, alternating, of these definitions and with values; names of what changed;
           wake-up calls, nil where there is none
Errors     STALE  the version of the rules in force here, which is another one
Cost       O(profiles x (names + groups)), about 6 us and 0.2 us for each
]]
--- @include "include/tag_of"
--- @include "include/rules_differ"
--- @include "include/seq_of"
--- @include "include/static_memberships"
local rules, erasing, unsettled = KEYS[1], KEYS[2], KEYS[3]
local due, dynamic = KEYS[4], KEYS[5]
local version, limit = ARGV[1], tonumber(ARGV[2])
local name_count, group_count = tonumber(ARGV[3]), tonumber(ARGV[4])
local definition_count, timed_count = tonumber(ARGV[5]), tonumber(ARGV[6])
local call, match = redis.call, string.match
local tag = tag_of(rules)
local differ = rules_differ(rules, version)
if differ then return differ end
local at = 7
local function list(count)
  local found = {}
  for i = 1, count do found[i] = ARGV[at + i - 1] end
  at = at + math.max(count, 0)
  return found
end
local names, groups = list(name_count), list(group_count)
local wanted = {}
for _, number in ipairs(list(definition_count)) do wanted[number] = true end
local timed, ids = list(timed_count), list(#ARGV - at + 1)
local some_erasing = call('EXISTS', erasing) == 1
local waiting = call('ZMSCORE', unsettled, unpack(ids))
local size = 0

local function values_of(id)
  local values
  if name_count < 0 then
    values = call('HGETALL', tag .. ':attributes:' .. id)
  elseif name_count == 0 then
    return {}
  else
    values = call('HMGET', tag .. ':attributes:' .. id, unpack(names))
  end
  for i = 1, #values do
    if values[i] then size = size + #values[i] end
  end
  return values
end

local function memberships_of(key)
  if group_count == 0 then return '' end
  if group_count > 0 then
    local fields = group_count > 20 and call('HLEN', key) or 0
    if fields > 40 and fields <= 1000 then
      -- PERF: a small hash is a list, which is searched from its start for every field: 200 groups
      -- of a profile in 400 took 1.2 ms.
      local inside, is_in = {}, {}
      for _, field in ipairs(call('HKEYS', key)) do inside[field] = true end
      for i = 1, group_count do is_in[i] = inside[groups[i]] and '1' or '0' end
      return table.concat(is_in)
    end
    local held = call('HMGET', key, unpack(groups))
    for i = 1, #held do held[i] = held[i] and '1' or '0' end
    return table.concat(held)
  end
  local all = call('HKEYS', key)
  for i = 1, #all, 2000 do
    local last = math.min(i + 1999, #all)
    local derived = call('SMISMEMBER', dynamic, unpack(all, i, last))
    for j = 1, #derived do
      if derived[j] == 1 then all[i + j - 1] = '-' .. all[i + j - 1] end
    end
  end
  size = size + 16 * #all
  return all
end

local function instances_of(id)
  local told = {}
  if definition_count == 0 then return told end
  local listed = call('HGETALL', tag .. ':instances:' .. id)
  for i = 2, #listed, 2 do
    local number, from = match(listed[i], '^(%d+) %d+ %d+ ()')
    if wanted[number] and from <= #listed[i] then
      told[#told + 1] = listed[i - 1]
      told[#told + 1] = listed[i]
      size = size + #listed[i]
    end
  end
  return told
end

local function due_of(id)
  if timed_count == 0 then return {} end
  local entries = {}
  for i = 1, timed_count do entries[i] = id .. timed[i] end
  return call('ZMSCORE', due, unpack(entries))
end

local found = {}
for n = 1, #ids do
  if size > limit then break end
  local id = ids[n]
  if some_erasing and call('SISMEMBER', erasing, id) == 1 then
    found[n] = {'E'}
  else
    local key, seq = tag .. ':m:' .. id, seq_of(tag, id)
    local values, changed = {}, {}
    if seq ~= '' then values = values_of(id) end
    if waiting[n] then
      changed = call('SMEMBERS', tag .. ':changed:' .. id)
      size = size + 16 * #changed
    end
    local fact = (seq ~= '' or static_memberships(key) > 0) and '1' or '0'
    found[n] = {
      (waiting[n] and 'U' or 'C') .. fact, seq, values, memberships_of(key), instances_of(id),
      changed, due_of(id),
    }
  end
end
return found
