#!lua
--[[
Change the custom id that a profile's record shows, and unlist identities, if the record is as it
was read.

KEYS[1]    profile    HASH  record of the profile
KEYS[2]    identities HASH  what resolves to the profile
KEYS[3]    none       never exists
ARGV[1]    expected   the custom id that the caller read, or ''
ARGV[2]    custom_id  the one to show, or ''
ARGV[3..]  identity   fields to unlist
Computed   none
Returns    1 where something changed, else 0
Errors     STALE  the custom id changed since, or the record is gone
Cost       O(identities); safe to send twice
]]
local profile, identities = KEYS[1], KEYS[2]
local expected, custom_id = ARGV[1], ARGV[2]
local call = redis.call
if call('EXISTS', profile) == 0 then return redis.error_reply('STALE the record is gone') end
local held = call('HGET', profile, 'custom_id') or ''
if held ~= expected then return redis.error_reply('STALE the custom id changed') end
local changed = 0
for i = 3, #ARGV do
  if call('HDEL', identities, ARGV[i]) == 1 then changed = 1 end
end
if custom_id ~= held then
  if custom_id == '' then
    call('HDEL', profile, 'custom_id')
  else
    call('HSET', profile, 'custom_id', custom_id)
  end
  changed = 1
end
return changed
