#!lua
--[[
Change what is kept of a profile, field by field, where it is as it was read. Not while the profile
is being erased.

KEYS[1]    kept      HASH  its record, or its attributes
KEYS[2]    profile   HASH  record of the profile
KEYS[3]    erasing   SET   profiles being erased
KEYS[4]    none      never exists
ARGV[1]    id        mixed id
ARGV[2]    now       integer  microseconds since 1970
ARGV[3..]  field, expected and wanted, repeated: '' where there is none, and = before a value
Computed   none
Returns    how many fields were changed. A change of attributes raises `seq`
Errors     none
Cost       O(fields); safe to send twice
]]
--- @include "include/raised"
local kept, profile, erasing = KEYS[1], KEYS[2], KEYS[3]
local id, now = ARGV[1], ARGV[2]
local call, sub = redis.call, string.sub
if call('SISMEMBER', erasing, id) == 1 then return 0 end
local seq = string.match(call('HGET', profile, 'seq') or '', '^%d+$') or false
local changed = 0
for i = 3, #ARGV, 3 do
  local field, expected, wanted = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local held = call('HGET', kept, field)
  if (held and '=' .. held or '') == expected then
    if wanted == '' then
      call('HDEL', kept, field)
    else
      call('HSET', kept, field, sub(wanted, 2))
    end
    changed = changed + 1
  end
end
if changed > 0 and kept ~= profile and call('EXISTS', profile) == 1 then
  call('HSET', profile, 'seq', raised(seq, now))
end
return changed
