#!lua
--[[
Change what a profile's record shows of its identities, and unlist some, if the record is as it was
read. Of another mpid follows another order of contributions.

KEYS[1]    profile    HASH  record of the profile
KEYS[2]    identities HASH  what resolves to the profile
KEYS[3]    none       never exists
ARGV[1]    id         mixed id
ARGV[2]    now        integer  microseconds since 1970
ARGV[3]    field      custom_id or mpid
ARGV[4]    expected   what it shows there as the caller read it, or ''
ARGV[5]    shown      what it is to show, or ''
ARGV[6..]  identity   fields to unlist
Computed   <tag>:watch, <tag>:dirty
Returns    1 where something changed, else 0
Errors     STALE  what it shows changed since, or the record is gone
Cost       O(identities); safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/raised"
--- @include "include/is_watched"
--- @include "include/mark_dirty"
local profile, identities = KEYS[1], KEYS[2]
local id, now, field, expected, shown = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local call = redis.call
if call('EXISTS', profile) == 0 then return redis.error_reply('STALE the record is gone') end
local held = call('HGET', profile, field) or ''
if held ~= expected then return redis.error_reply('STALE the ' .. field .. ' changed') end
local changed = 0
for i = 6, #ARGV do
  if call('HDEL', identities, ARGV[i]) == 1 then changed = 1 end
end
if shown ~= held then
  if shown == '' then
    call('HDEL', profile, field)
  else
    call('HSET', profile, field, shown)
  end
  if field == 'mpid' then
    local tag = tag_of(profile)
    call('HSET', profile, 'seq', raised(call('HGET', profile, 'seq'), now))
    if is_watched(tag) then mark_dirty(tag, id, now) end
  end
  changed = 1
end
return changed
