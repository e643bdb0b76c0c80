-- How many segments a group has here, as `shape` says. What is no number counts as one segment.
local function segments_of(tag, group)
  local held = redis.call('HGET', tag .. ':shape', group)
  if held and #held < 10 and string.match(held, '^[1-9]%d*$') then return tonumber(held) end
  return 1
end
