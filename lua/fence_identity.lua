#!lua flags=allow-oom
--[[
Has a profile confirmed an identity? If not, no attempt up to this one can confirm it any more.

KEYS[1]    identities HASH    what resolves to the profile
KEYS[2]    fence      STRING  the latest attempt that was given up
KEYS[3]    none       never exists
ARGV[1]    identity   the identity's field
ARGV[2]    attempt    integer  microseconds since 1970, as reserved
ARGV[3]    ttl        integer  seconds that the fence stands: longer than any attempt lives
Computed   none
Returns    since when it is confirmed, nil where it is now fenced off
Errors     none
Cost       O(1); safe to send twice
]]
local identities, fence = KEYS[1], KEYS[2]
local identity, attempt, ttl = ARGV[1], ARGV[2], ARGV[3]
local since = redis.call('HGET', identities, identity)
if since then return since end
local held = redis.call('GET', fence)
if held and tonumber(held) > tonumber(attempt) then attempt = held end
redis.call('SET', fence, attempt, 'EX', ttl)
return nil
