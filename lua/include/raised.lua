-- The version after `last` (a string of digits, or false): max(last + 1, now in microseconds), so
-- that neither an erase nor a failover makes versions start again. Microseconds stay exact in a
-- double, but must be printed as integers.
local function raised(last, now_us)
  local now = tonumber(now_us)
  local next_version = tonumber(last or '0') + 1
  return string.format('%.0f', math.max(now, next_version))
end
