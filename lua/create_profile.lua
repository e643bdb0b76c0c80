#!lua
--[[
Make a new profile, whose id the caller drew: its record, attributes and group 0, and the custom id
that is to resolve to it, in one step.

KEYS[1]    profile    HASH  record of the profile
KEYS[2]    attributes HASH  its attributes
KEYS[3]    identities HASH  what resolves to the profile
KEYS[4]    instances HASH  instances that it contributes to
KEYS[5]    rules     STRING  version of the rules
KEYS[6]    none      never exists
ARGV[1]    id         mixed id; where a custom id is given, of the slot of that
ARGV[2]    created_at integer  microseconds since 1970
ARGV[3]    bucket     integer  the bucket of the custom id; '' where none is given
ARGV[4]    identity   the field of the custom id
ARGV[5]    fields     integer  how many fields of the record follow
ARGV[6]    version    integer  of the rules by which names are inherited; '' without attributes
ARGV[7..]  field and value, alternating: the record's; then name and JSON value of each attribute
Computed   <tag>:identity:<bucket>, <tag>:g:0:<depth>:<prefix>, <tag>:count, <tag>:shape,
           <tag>:watch, <tag>:dirty, <tag>:named, <tag>:changed:<id>, <tag>:unsettled
Returns    {record, attributes, instances, version, behind}: fields and values, alternating; the
           version of the rules; 1 where contributions have yet to follow, 2 where dynamic groups
           have, 3 where both have.
           {reservation} (id, r, attempt) where another profile holds the custom id so: that has to
           be settled first
Errors     TAKEN  the custom id belongs to another profile
           STALE  the rules are others; the detail is their version
Cost       O(attributes), about 2 us each; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/owner_of"
--- @include "include/insert_members"
--- @include "include/replace_attributes"
--- @include "include/is_watched"
--- @include "include/mark_dirty"
--- @include "include/named_of"
--- @include "include/mark_unsettled"
--- @include "include/kept_of"
local profile, attributes, identities, instances, rules =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local id, created_at, bucket, identity = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local first, version = 7 + 2 * tonumber(ARGV[5]), ARGV[6]
local call = redis.call
local tag = tag_of(profile)
local some = call('EXISTS', tag .. ':named', tag .. ':unsettled') > 0
if call('HGET', profile, 'created_at') == created_at then
  return kept_of(profile, attributes, instances, rules, id, some)
end
local known = call('GET', rules) or '0'
if version ~= '' and version ~= known then return redis.error_reply('STALE ' .. known) end
if bucket ~= '' then
  local key = tag .. ':identity:' .. bucket
  local held = call('HGET', key, identity)
  if owner_of(held) then
    return redis.error_reply('TAKEN the custom id belongs to another profile')
  end
  if held then return {held} end
  call('HSET', key, identity, id .. created_at)
  call('HSET', identities, identity, created_at)
end
call('HSET', profile, 'created_at', created_at)
for i = 7, first - 1, 2 do
  call('HSET', profile, ARGV[i], ARGV[i + 1])
end
local changed = replace_attributes(attributes, created_at, created_at, 0, 0, '', first)
if #changed > 0 then
  call('HSET', profile, 'seq', created_at)
  if is_watched(tag, changed) then mark_dirty(tag, id, created_at) end
end
insert_members(tag, '0', {id})
if some then
  changed[#changed + 1] = '\0' .. '0'
  local _, names = named_of(tag, changed)
  mark_unsettled(tag, {id}, names, created_at)
end
return kept_of(profile, attributes, instances, rules, id, some)
