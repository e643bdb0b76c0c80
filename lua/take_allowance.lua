#!lua
--[[
Take one request out of a caller's allowance, if there is one left (GCRA: what is kept is when the
allowance will be whole again).

KEYS[1]    allowance  STRING   when it is whole again, microseconds since 1970; absent: it is
KEYS[2]    none       never exists
ARGV[1]    now        integer  microseconds since 1970
ARGV[2]    interval   integer  microseconds after which one request comes back
ARGV[3]    burst      integer  requests that a whole allowance has
ARGV[4]    skew       integer  microseconds by which the clocks of two callers may differ
Computed   none
Returns    microseconds until one is there; or, where it was taken, those until the allowance is
           whole again, negative
Errors     none
Cost       O(1); sent twice it takes twice
]]
local allowance = KEYS[1]
local now, interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local skew = tonumber(ARGV[4])
local empty = now + burst * interval
local held = redis.call('GET', allowance) or ''
local whole = tonumber(string.match(held, '^%d+$') or now)

local function keep(at)
  local lasts = math.ceil((at - now) / 1000)
  redis.call('SET', allowance, string.format('%.0f', at), 'PX', string.format('%.0f', lasts))
end

if whole > empty + skew then
  -- The clock went back, or the limit is another one: it is empty now, and fills from here on.
  keep(empty)
  return interval
end
local taken = math.max(whole, now) + interval
if taken > empty then return taken - empty end
keep(taken)
return now - taken
