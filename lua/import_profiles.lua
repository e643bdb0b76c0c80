#!lua
--[[
Bring records and attributes of profiles in from elsewhere. Of a record that is there only what is
missing is filled in; an attribute is written where its time is later than that of the one here. A
profile that had no fact before enters group 0 in the same step, and one from whose attributes
anything follows is noted as behind.

KEYS[1]    erasing   SET   profiles being erased
KEYS[2]    none      never exists
ARGV[1]    now       integer  microseconds since 1970
ARGV[2..]  repeated: mixed id; how many fields of the record, and how many attributes, follow; each
           field and its value; each attribute, its time, since and JSON value (since and value ''
           of one that was deleted)
Computed   <tag>:profile:<id>, <tag>:attributes:<id>, <tag>:m:<id>, <tag>:g:0:<depth>:<prefix>,
           <tag>:count, <tag>:shape, <tag>:watch, <tag>:dirty, <tag>:named, <tag>:changed:<id>,
           <tag>:unsettled
Returns    string, a letter per profile: + something was written, = all of it was there, E the
           profile is being erased; after them ! where rules have yet to follow
Errors     none
Cost       O(ARGV), about 10 us a profile and 2 us an attribute; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/head_of"
--- @include "include/has_fact"
--- @include "include/raised"
--- @include "include/attribute_text"
--- @include "include/is_watched"
--- @include "include/mark_dirty"
--- @include "include/named_of"
--- @include "include/mark_unsettled"
--- @include "include/any_unsettled"
--- @include "include/insert_members"
local erasing, now = KEYS[1], ARGV[1]
local call, match = redis.call, string.match
local tag = tag_of(erasing)
local some = call('EXISTS', erasing, tag .. ':named') > 0
local some_erasing = some and call('EXISTS', erasing) == 1
local letters, entering, entered, unsettled, others = {}, {}, {}, false, {}
-- The value that an attribute of a profile is to have, nil where the one here stays, and whether it
-- is another JSON. What is shown as the same text, with a later time, keeps on from the earlier of
-- both beginnings.
local function merged(held, time, since, value)
  local held_time = held and match(held, '^(%d+)')
  if held_time and tonumber(held_time) >= tonumber(time) then return nil end
  local held_since, held_value = match(held or '', '^%d+ (%d+) (.*)$')
  if since == '' then return time, held_value ~= nil end
  if held_value and attribute_text(held_value) == attribute_text(value)
    and tonumber(held_since) < tonumber(since) then
    since = held_since
  end
  return time .. ' ' .. since .. ' ' .. value, held_value ~= value
end
local at = 2
while at <= #ARGV do
  local id, fields, attributes = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local first = at + 3
  local stop = first + 2 * fields
  at = stop + 4 * attributes
  local letter = '='
  if some_erasing and call('SISMEMBER', erasing, id) == 1 then
    letter = 'E'
  else
    local profile, held_attributes = tag .. ':profile:' .. id, tag .. ':attributes:' .. id
    local turned = {}
    if not entered[id] and not has_fact(tag, id) then
      entered[id] = true
      entering[#entering + 1] = id
      turned[1] = '\0' .. '0'
    end
    for i = first, stop - 1, 2 do
      if call('HSETNX', profile, ARGV[i], ARGV[i + 1]) == 1 then letter = '+' end
    end
    local changed = {}
    for i = stop, at - 1, 4 do
      local value, turns = merged(call('HGET', held_attributes, ARGV[i]), ARGV[i + 1],
        ARGV[i + 2], ARGV[i + 3])
      if value then
        call('HSET', held_attributes, ARGV[i], value)
        changed[#changed + 1] = ARGV[i]
        if turns then turned[#turned + 1] = ARGV[i] end
      end
    end
    if #changed > 0 then
      call('HSET', profile, 'seq', raised(call('HGET', profile, 'seq'), now))
      if is_watched(tag, changed) then mark_dirty(tag, id, now) end
      letter = '+'
    end
    if some then
      local _, names = named_of(tag, turned)
      mark_unsettled(tag, {id}, names, now)
      unsettled = unsettled or #names > 0
      others[#others + 1] = id
    end
  end
  letters[#letters + 1] = letter
end
-- Not by the ids themselves: how Lua compares strings is up to the locale of the server.
table.sort(entering, function(a, b) return head_of(a) < head_of(b) end)
insert_members(tag, '0', entering)
if unsettled or any_unsettled(tag, others) then letters[#letters + 1] = '!' end
return table.concat(letters)
