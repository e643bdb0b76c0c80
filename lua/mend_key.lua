#!lua flags=allow-oom
--[[
Delete a key that the schema does not have, or that is of the wrong type, if it is still so.

KEYS[1]    first     a key of the same tag
KEYS[2]    none      never exists
ARGV[1]    key       the whole key
ARGV[2]    type      the type that it should have, or '' where it should not exist
Computed   the key of ARGV
Returns    1 where it was deleted, else 0
Errors     none
Cost       O(1); what it held is freed in the background
]]
--- @include "include/tag_of"
local key, right = ARGV[1], ARGV[2]
if tag_of(key) ~= tag_of(KEYS[1]) then return 0 end
local held = redis.call('TYPE', key)
if type(held) == 'table' then held = held.ok end
if held == right then return 0 end
return redis.call('UNLINK', key)
