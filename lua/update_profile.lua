#!lua
--[[
Change what is kept of a profile. The attributes, where they change, become those given; when one
was deleted is kept for a while, so that an older write does not bring it back. A profile of which
only memberships are known gets a record.

KEYS[1]    profile    HASH  record of the profile
KEYS[2]    attributes HASH  its attributes
KEYS[3]    erasing   SET   profiles being erased
KEYS[4]    instances HASH  instances that it contributes to
KEYS[5]    rules     STRING  version of the rules
KEYS[6]    none      never exists
ARGV[1]    id        mixed id
ARGV[2]    now       integer  microseconds since 1970
ARGV[3]    since     which record is meant: the one created then; '*' any; '' none is needed
ARGV[4]    fields    integer  how many fields of the record follow
ARGV[5]    at        '' attributes stay; '-' they are replaced, after all that is held; or as of a
           time, in microseconds since 1970: what is held since a later one stays
ARGV[6]    before    integer  deletions from before then are forgotten, in microseconds since 1970
ARGV[7]    limit     integer  deletions that are kept at most, the latest
ARGV[8]    version   integer  of the rules by which names are inherited, where attributes change
ARGV[9]    hidden    ids of definitions, each between NULs: attributes named `<id>:...` stay as they
           are held, and are not for a client to write
ARGV[10..] field and value, alternating: of the record, '-' takes the field away, and '=' stands
           before a value; then name and JSON value of each attribute
Computed   <tag>:m:<id>, <tag>:profile:<id>, <tag>:watch, <tag>:dirty, <tag>:named,
           <tag>:changed:<id>, <tag>:unsettled
Returns    {record, attributes, instances, version, behind}: fields and values, alternating, as they
           are now; the version of the rules; 1 where contributions have yet to follow, 2 where
           dynamic groups have, 3 where both have
Errors     ERASING   the profile is being erased
           NOTFOUND  nothing is known of it, or it has not the record that is meant
           STALE     the rules are others; the detail is their version
Cost       O(attributes), about 3 us each; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/has_fact"
--- @include "include/raised"
--- @include "include/replace_attributes"
--- @include "include/is_watched"
--- @include "include/mark_dirty"
--- @include "include/named_of"
--- @include "include/mark_unsettled"
--- @include "include/kept_of"
local profile, attributes, erasing, instances, rules = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local id, now, since, at = ARGV[1], ARGV[2], ARGV[3], ARGV[5]
local first = 10 + 2 * tonumber(ARGV[4])
local before, limit, version, hidden = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8], ARGV[9]
local call = redis.call
if call('SISMEMBER', erasing, id) == 1 then
  return redis.error_reply('ERASING the profile is being erased')
end
local created_at = call('HGET', profile, 'created_at')
local meant = since == '' or (created_at and (since == '*' or since == created_at))
local tag = tag_of(profile)
if not meant or not has_fact(tag, id) then
  return redis.error_reply('NOTFOUND Not found.')
end
local held = call('GET', rules) or '0'
if at ~= '' and held ~= version then return redis.error_reply('STALE ' .. held) end
if not created_at then call('HSET', profile, 'created_at', now) end
for i = 10, first - 1, 2 do
  if ARGV[i + 1] == '-' then
    call('HDEL', profile, ARGV[i])
  else
    call('HSET', profile, ARGV[i], string.sub(ARGV[i + 1], 2))
  end
end
local changed = {}
if at ~= '' then changed = replace_attributes(attributes, at, now, before, limit, hidden, first) end
if #changed > 0 then
  call('HSET', profile, 'seq', raised(call('HGET', profile, 'seq'), now))
  if is_watched(tag, changed) then mark_dirty(tag, id, now) end
end
-- PERF: one command says that neither is there, as it is mostly.
local some = call('EXISTS', tag .. ':named', tag .. ':unsettled') > 0
if some then
  local _, names = named_of(tag, changed)
  mark_unsettled(tag, {id}, names, now)
end
return kept_of(profile, attributes, instances, rules, id, some)
