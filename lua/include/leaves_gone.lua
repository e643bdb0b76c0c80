-- Is one of the groups that a rule tree names gone, or another one by now? ARGV[first..] are their
-- ids and numbers in turn, 200 at most.
local function leaves_gone(ids, first)
  local wanted = {}
  for i = first, #ARGV, 2 do wanted[#wanted + 1] = ARGV[i] end
  if #wanted == 0 then return false end
  local held = redis.call('HMGET', ids, unpack(wanted))
  for i = 1, #held do
    if held[i] ~= ARGV[first + 2 * i - 1] then return true end
  end
  return false
end
