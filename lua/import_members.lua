#!lua
--[[
Bring memberships in from elsewhere with their join times, both directions at once; of inactive
groups too. A membership that is there keeps its time. A profile that had no fact before enters
group 0 in the same step.

KEYS[1]    state     HASH  state of groups in this partition
KEYS[2]    erasing   SET   profiles being erased
KEYS[3]    none      never exists
ARGV[1]    now       integer  microseconds since 1970
ARGV[2]    limit     integer  static groups that one profile may be in
ARGV[3..]  group, ids, times, repeated: the group's number; packed mixed ids, 16 bytes each,
           ascending, none twice; as many times in microseconds since 1970, a blank between them
Computed   <tag>:m:<id>, <tag>:g:<group>:<depth>:<prefix>, the same of group 0, <tag>:profile:<id>,
           <tag>:count, <tag>:shape, <tag>:named, <tag>:changed:<id>, <tag>:unsettled
Returns    string, a letter per id in the order given: + added, = already a member, L over the
           limit, E being erased, D the group is deleted; after them ! where rules have yet to
           follow
Errors     none
Cost       O(ids), about 15 us each; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/head_of"
--- @include "include/insert_members"
--- @include "include/named_of"
--- @include "include/mark_unsettled"
--- @include "include/any_unsettled"
local state, erasing = KEYS[1], KEYS[2]
local now, limit = ARGV[1], tonumber(ARGV[2])
local call, sub = redis.call, string.sub
local tag = tag_of(state)
local some = call('EXISTS', erasing, tag .. ':named') > 0
local some_erasing = some and call('EXISTS', erasing) == 1
local named
if some then
  local names = {'\0' .. '0'}
  for at = 3, #ARGV, 3 do names[#names + 1] = '\0' .. ARGV[at] end
  named = named_of(tag, names)
end
local memberships = tag .. ':m:'
local letters, static_of, runs, entering, held_before = {}, {}, {}, {}, {}
for at = 3, #ARGV, 3 do
  local group, packed = ARGV[at], ARGV[at + 1]
  local held_state = call('HGET', state, group)
  local last = held_state and sub(held_state, -1)
  local deleted = last == 'd' or last == 'g'
  local fresh, joined_at = {}, {}
  local position = 1
  for time in string.gmatch(ARGV[at + 2], '%d+') do
    local id = sub(packed, position, position + 15)
    position = position + 16
    local letter = '+'
    if deleted then
      letter = 'D'
    elseif some_erasing and call('SISMEMBER', erasing, id) == 1 then
      letter = 'E'
    else
      local key = memberships .. id
      local size = call('HLEN', key)
      local static = size
      if size > 0 then
        local held = call('HMGET', key, group, 'd')
        if held[2] then static = size - 1 - tonumber(held[2]) end
        if held[1] then
          letter = '='
          if named then held_before[#held_before + 1] = id end
        end
      end
      if letter == '+' then
        local known = static_of[id]
        static = known or static
        if static >= limit then
          letter = 'L'
        else
          static_of[id] = static + 1
          fresh[#fresh + 1] = id
          joined_at[#fresh] = time
          if not known and static == 0 and call('EXISTS', tag .. ':profile:' .. id) == 0 then
            entering[#entering + 1] = id
          end
        end
      end
    end
    letters[#letters + 1] = letter
  end
  runs[#runs + 1] = {group, fresh, joined_at}
end
for i = 1, #runs do
  local group, fresh, joined_at = runs[i][1], runs[i][2], runs[i][3]
  for j = 1, #fresh do
    call('HSET', memberships .. fresh[j], group, joined_at[j])
  end
  insert_members(tag, group, fresh)
end
-- Not by the ids themselves: how Lua compares strings is up to the locale of the server.
table.sort(entering, function(a, b) return head_of(a) < head_of(b) end)
insert_members(tag, '0', entering)
if named then
  local known = named['\0' .. '0'] and entering or {}
  local unsettled = #known > 0
  mark_unsettled(tag, known, {'\0' .. '0'}, now)
  for i = 1, #runs do
    local name, fresh = '\0' .. runs[i][1], runs[i][2]
    if named[name] and #fresh > 0 then
      mark_unsettled(tag, fresh, {name}, now)
      unsettled = true
    end
  end
  if unsettled or any_unsettled(tag, held_before) then letters[#letters + 1] = '!' end
end
return table.concat(letters)
