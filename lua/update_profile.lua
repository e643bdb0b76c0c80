#!lua
--[[
Change what is kept of a profile. The attributes, where they change, become those given; when one
was deleted is kept for a while, so that an older write does not bring it back. A profile of which
only memberships are known gets a record.

KEYS[1]    profile    HASH  record of the profile
KEYS[2]    attributes HASH  its attributes
KEYS[3]    erasing   SET   profiles being erased
KEYS[4]    none      never exists
ARGV[1]    id        mixed id
ARGV[2]    now       integer  microseconds since 1970
ARGV[3]    since     which record is meant: the one created then; '*' any; '' none is needed
ARGV[4]    fields    integer  how many fields of the record follow
ARGV[5]    at        '' attributes stay; '-' they are replaced, after all that is held; or as of a
           time, in microseconds since 1970: what is held since a later one stays
ARGV[6]    before    integer  deletions from before then are forgotten, in microseconds since 1970
ARGV[7]    limit     integer  deletions that are kept at most, the latest
ARGV[8..]  field and value, alternating: of the record, '-' takes the field away, and '=' stands
           before a value; then name and JSON value of each attribute
Computed   <tag>:m:<id>, <tag>:profile:<id>
Returns    {record, attributes}: fields and values, alternating, as they are now
Errors     ERASING   the profile is being erased
           NOTFOUND  nothing is known of it, or it has not the record that is meant
Cost       O(attributes), about 3 us each; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/has_fact"
--- @include "include/raised"
--- @include "include/replace_attributes"
--- @include "include/kept_of"
local profile, attributes, erasing = KEYS[1], KEYS[2], KEYS[3]
local id, now, since, at = ARGV[1], ARGV[2], ARGV[3], ARGV[5]
local first = 8 + 2 * tonumber(ARGV[4])
local before, limit = tonumber(ARGV[6]), tonumber(ARGV[7])
local call = redis.call
if call('SISMEMBER', erasing, id) == 1 then
  return redis.error_reply('ERASING the profile is being erased')
end
local created_at = call('HGET', profile, 'created_at')
local meant = since == '' or (created_at and (since == '*' or since == created_at))
if not meant or not has_fact(tag_of(profile), id) then
  return redis.error_reply('NOTFOUND Not found.')
end
if not created_at then call('HSET', profile, 'created_at', now) end
for i = 8, first - 1, 2 do
  if ARGV[i + 1] == '-' then
    call('HDEL', profile, ARGV[i])
  else
    call('HSET', profile, ARGV[i], string.sub(ARGV[i + 1], 2))
  end
end
if at ~= '' and replace_attributes(attributes, at, now, before, limit, first) then
  call('HSET', profile, 'seq', raised(call('HGET', profile, 'seq'), now))
end
return kept_of(profile, attributes)
