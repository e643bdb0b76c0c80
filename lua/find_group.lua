#!lua flags=no-writes
--[[
The group with this id or, if no group has it, with this custom id.

KEYS[1]    ids        HASH  id -> number
KEYS[2]    custom_ids HASH  custom id -> number
KEYS[3]    none       never exists
ARGV[1]    id         16 bytes of the UUID, or '' where the text is none
ARGV[2]    custom_id  the text as given
Computed   <tag>:group:<number>
Returns    {number, document, version}, or an empty list
Errors     none
Cost       O(1)
]]
--- @include "include/tag_of"
local ids, custom_ids = KEYS[1], KEYS[2]
local id, custom_id = ARGV[1], ARGV[2]
local number = id ~= '' and redis.call('HGET', ids, id)
if not number then number = redis.call('HGET', custom_ids, custom_id) end
if not number then return {} end
local held = redis.call('HMGET', tag_of(ids) .. ':group:' .. number, 'document', 'version')
return {number, held[1], held[2]}
