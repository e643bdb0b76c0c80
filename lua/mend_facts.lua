#!lua
--[[
Give profiles that have attributes or identities a record, and make group 0 hold exactly those about
whom there is a fact. Profiles being erased are passed over.

KEYS[1]    erasing   SET   profiles being erased
KEYS[2]    none      never exists
ARGV[1]    now       integer  microseconds since 1970
ARGV[2..]  id        mixed ids; at most 50
Computed   <tag>:profile:<id>, <tag>:attributes:<id>, <tag>:identities:<id>, <tag>:m:<id>,
           <tag>:g:0:<depth>:<prefix>, <tag>:count, <tag>:shape
Returns    {done, ...}, one per id, made of r record made, + entered into group 0, - taken out of it
Errors     none
Cost       O(ids), about 15 us each; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/has_fact"
--- @include "include/in_segment"
--- @include "include/insert_members"
--- @include "include/delete_members"
local erasing, now = KEYS[1], ARGV[1]
local call = redis.call
local tag = tag_of(erasing)
local reply = {}
for i = 2, #ARGV do
  local id = ARGV[i]
  local done = ''
  if call('SISMEMBER', erasing, id) == 0 then
    local profile = tag .. ':profile:' .. id
    if call('EXISTS', profile) == 0
      and call('EXISTS', tag .. ':attributes:' .. id, tag .. ':identities:' .. id) > 0 then
      call('HSET', profile, 'created_at', now)
      done = 'r'
    end
    local inside = in_segment(tag, '0', id)
    if has_fact(tag, id) ~= inside then
      if inside then
        delete_members(tag, '0', {id})
        done = done .. '-'
      else
        insert_members(tag, '0', {id})
        done = done .. '+'
      end
    end
  end
  reply[i - 1] = done
end
return reply
