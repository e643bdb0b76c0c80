#!lua
--[[
The profiles that identities of one slot resolve to; whoever has none gets a new profile, whose id
the caller drew for this slot. Identity, record and group 0 are written in one step.

KEYS[1]    count     HASH  members of groups in this partition
KEYS[2]    shape     HASH  segments of groups in this partition
KEYS[3]    none      never exists
ARGV[1]    kind      the field of the profile that shows these identities (custom_id), or ''
ARGV[2]    created_at integer  microseconds since 1970
ARGV[3..]  bucket, identity, value, candidate, repeated: the bucket's number, the identity's field,
           its value, a drawn mixed id
Computed   <tag>:identity:<bucket>, <tag>:profile:<id>, <tag>:identities:<id>,
           <tag>:g:0:<depth>:<prefix>, <tag>:named, <tag>:changed:<id>, <tag>:unsettled
Returns    {id, ...}, one per identity: a mixed id, or a reservation (id, r, attempt) that another
           profile holds and that has to be settled first; after them ! where rules have yet to
           follow from new profiles
Errors     none
Cost       O(identities), about 12 us for each that is new; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/head_of"
--- @include "include/owner_of"
--- @include "include/insert_members"
--- @include "include/named_of"
--- @include "include/mark_unsettled"
local tag = tag_of(KEYS[1])
local kind, created_at = ARGV[1], ARGV[2]
local found, entering = {}, {}
for i = 3, #ARGV, 4 do
  local bucket, identity, value, candidate = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local key = tag .. ':identity:' .. bucket
  local held = redis.call('HGET', key, identity)
  local id = owner_of(held) or held
  if not id then
    id = candidate
    redis.call('HSET', key, identity, id .. created_at)
    local profile = tag .. ':profile:' .. id
    if kind == '' then
      redis.call('HSET', profile, 'created_at', created_at)
    else
      redis.call('HSET', profile, 'created_at', created_at, kind, value)
    end
    redis.call('HSET', tag .. ':identities:' .. id, identity, created_at)
    entering[#entering + 1] = id
  end
  found[#found + 1] = id
end
-- Not by the ids themselves: how Lua compares strings is up to the locale of the server.
table.sort(entering, function(a, b) return head_of(a) < head_of(b) end)
insert_members(tag, '0', entering)
if #entering > 0 and named_of(tag, {'\0' .. '0'}) then
  mark_unsettled(tag, entering, {'\0' .. '0'}, created_at)
  found[#found + 1] = '!'
end
return found
