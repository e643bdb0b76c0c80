#!lua flags=allow-oom
--[[
One bounded step of removing what a deleted group left in this partition: up to `limit` members,
both directions. After the last one the state says that the group is gone.

KEYS[1]    state     HASH  state of groups in this partition
KEYS[2]    count     HASH  members of groups in this partition
KEYS[3]    shape     HASH  segments of groups in this partition
KEYS[4]    none      never exists
ARGV[1]    group     integer  the group's number
ARGV[2]    limit     integer  members at most
ARGV[3]    now       integer  microseconds since 1970
Computed   <tag>:m:<id>, <tag>:g:<group>:<depth>:<prefix>, the same of group 0, <tag>:profile:<id>
Returns    members left in this partition
Errors     CONFLICT  the group is not deleted here
Cost       O(limit), about 12 us each; safe to send twice
]]
--- @include "include/tag_of"
--- @include "include/raised"
--- @include "include/walk_members"
--- @include "include/drop_memberships"
local state, count, shape = KEYS[1], KEYS[2], KEYS[3]
local group, limit, now = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local held = redis.call('HGET', state, group)
local letter = held and string.sub(held, -1)
if letter == 'g' then return 0 end
if letter ~= 'd' then return redis.error_reply('CONFLICT group ' .. group .. ' is not deleted') end
local tag = tag_of(state)
local members = walk_members(tag, group, false, '', limit)
drop_memberships(tag, group, members)
-- The walk says when nobody is left, so that a count that is wrong cannot keep the sweep going.
local left = tonumber(redis.call('HGET', count, group) or '0')
if left <= 0 or #members < limit then
  redis.call('HDEL', count, group)
  redis.call('HDEL', shape, group)
  redis.call('HSET', state, group, raised(string.match(held, '^%d+'), now) .. ' g')
  return 0
end
return left
