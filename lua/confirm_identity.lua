#!lua
--[[
Write a reserved identity into its profile: the second step. Refused when a fence says that the
reservation was given up meanwhile. A profile that gets its mpid so is noted as behind, where
anything may follow from it.

KEYS[1]    profile    HASH    record of the profile
KEYS[2]    identities HASH    what resolves to the profile -> since when
KEYS[3]    fence      STRING  the latest attempt that was given up
KEYS[4]    erasing    SET     profiles being erased
KEYS[5]    none       never exists
ARGV[1]    id         mixed id
ARGV[2]    identity   the identity's field
ARGV[3]    attempt    integer  microseconds since 1970, as reserved
ARGV[4]    kind       the field of the profile that shows the identity (custom_id, mpid), or ''
ARGV[5]    value      the identity's value
ARGV[6]    known      0 or 1: only a profile of which something is known gets it
ARGV[7]    now        integer  microseconds since 1970
Computed   <tag>:m:<id>, <tag>:g:0:<depth>:<prefix>, <tag>:watch, <tag>:dirty, <tag>:named,
           <tag>:changed:<id>, <tag>:unsettled
Returns    {since, unsettled}: since when the profile has it, this attempt or an earlier one; 1
           where rules have yet to follow from its becoming known
Errors     ERASING   the profile is being erased
           STALE     the attempt was given up by somebody else; the detail is the latest that was
           CONFLICT  the profile has another identity of this kind, and may have one
           NOTFOUND  nothing is known of the profile
Cost       O(1); safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/has_fact"
--- @include "include/static_memberships"
--- @include "include/raised"
--- @include "include/is_watched"
--- @include "include/mark_dirty"
--- @include "include/insert_members"
--- @include "include/named_of"
--- @include "include/mark_unsettled"
local profile, identities, fence, erasing = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, identity, attempt, kind, value = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local now = ARGV[7]
local call = redis.call
if call('SISMEMBER', erasing, id) == 1 then
  return redis.error_reply('ERASING the profile is being erased')
end
local since = call('HGET', identities, identity)
if since then return {since, 0} end
local given_up = call('GET', fence)
if given_up and tonumber(given_up) >= tonumber(attempt) then
  return redis.error_reply('STALE ' .. given_up)
end
if kind ~= '' then
  local shown = call('HGET', profile, kind)
  if shown and shown ~= value then
    return redis.error_reply('CONFLICT the profile has another ' .. kind)
  end
end
local tag = tag_of(profile)
local unsettled = 0
if ARGV[6] == '1' and not has_fact(tag, id) then return redis.error_reply('NOTFOUND Not found.') end
if call('EXISTS', profile) == 0 then
  call('HSET', profile, 'created_at', attempt)
  if static_memberships(tag .. ':m:' .. id) == 0 then
    insert_members(tag, '0', {id})
    if named_of(tag, {'\0' .. '0'}) then
      mark_unsettled(tag, {id}, {'\0' .. '0'}, now)
      unsettled = 1
    end
  end
end
if kind ~= '' and call('HSET', profile, kind, value) == 1 and kind == 'mpid' then
  -- Contributions are in the order of mpids.
  call('HSET', profile, 'seq', raised(call('HGET', profile, 'seq'), now))
  if is_watched(tag) then mark_dirty(tag, id, now) end
end
call('HSET', identities, identity, attempt)
return {attempt, unsettled}
